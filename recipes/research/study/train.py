"""One run of the study: the recipe's own training step, on noisy clips, by a rule."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from recipes.config import Config
from recipes.data.sampler import BatchSampler, Source
from recipes.errors import Failure
from recipes.model.harmonizer import harmonizer
from recipes.model.vatt import SIZES, VATT
from recipes.research.study.clips import World
from recipes.research.study.evaluate import Seen, kept, probe, retrieve
from recipes.research.study.noise import Noisy
from recipes.research.study.rule import Rule, warmup_steps
from recipes.research.study.world import WorldConfig
from recipes.training.setup import learning_rate, make_optimizer, set_learning_rate, step_options
from recipes.training.step import Learner, StepOptions, StepResult, co_teach, train_step

LAST = 0.25  # share of the steps, the last ones, in which it is counted what a rule keeps


@dataclass(frozen=True)
class Outcome:
    """The result of a run."""

    curve: list[dict[str, float]]  # for each evaluation: step, CPU seconds of training so far, and retrieval
    final: dict[str, float]  # accuracy of the probe, and what the rule keeps in the last quarter of the run, by name


class Taken(NamedTuple):
    """A step that was taken."""

    step: int  # steps so far
    rows: Tensor  # of the batch, (B,)
    result: StepResult
    modules: nn.ModuleDict  # of the first learner
    seconds: float  # of CPU time so far


def train(world: World, noisy: Noisy, rule: Rule, config: WorldConfig, seed: int) -> Outcome:
    """Train on noisy clips by a rule; test, and fit the probe, on the clean ones of the world."""
    began = time.process_time()
    noisy = noisy if rule.prepare is None else rule.prepare(config, world, noisy, seed)
    before = time.process_time() - began
    curve, seen, steps = [], [], config.train.steps
    for taken in run(noisy, rule, config, seed, world.vocabulary):
        if taken.step > (1 - LAST) * steps:
            weights = clip_weights(taken.result, len(taken.rows)) * noisy.clips.weights[taken.rows]
            seen.append(Seen(taken.rows, weights, taken.result.cosines))
        if taken.step % config.evaluate_every == 0 or taken.step == steps:
            figures = retrieve(taken.modules, world)
            curve.append({"step": taken.step, "cpu_seconds": before + taken.seconds, **figures})
    return Outcome(curve, {"probe": probe(taken.modules, world), **kept(seen, noisy, world.rare)})


def run(noisy: Noisy, rule: Rule, config: WorldConfig, seed: int, vocabulary: int) -> Iterator[Taken]:
    """Train on clips by a rule, step by step."""
    recipe = recipe_of(config, rule, seed)
    torch.manual_seed(seed)
    learners = [make_learner(recipe, rule, noisy, vocabulary) for _ in range(rule.networks)]
    options, rate = options_of(recipe, rule), learning_rate(recipe.train)
    sampler, seconds = BatchSampler([Source(len(noisy.clips))], recipe.train.batch_size, seed), 0.0
    for step in range(recipe.train.steps):
        rows = torch.tensor([row for _, row in sampler.batch(step)])
        inputs = noisy.clips.batch(rows)
        began = time.process_time()
        result = take_step(learners, inputs, options, float(rate(torch.tensor(step))))
        seconds += time.process_time() - began
        if result.broken:
            raise Failure(f"step {step}: {result.reason}; lower train.lr of the world")
        yield Taken(step + 1, rows, result, learners[0].modules, seconds)


def recipe_of(config: WorldConfig, rule: Rule, seed: int) -> Config:
    return replace(
        rule.recipe,
        clip=config.clip,
        model=config.model,
        objective=config.objective,
        train=replace(config.train, seed=seed),
        curriculum=replace(rule.recipe.curriculum, warmup=warmup_steps(config.train)),
    )


def make_learner(recipe: Config, rule: Rule, noisy: Noisy, vocabulary: int) -> Learner:
    """The recipe's model with the losses and the harmonizer of a rule, from torch's random state."""
    modules = nn.ModuleDict(
        {
            "model": VATT(recipe.model, recipe.clip, vocabulary),
            "objective": rule.objective(recipe.objective, SIZES[recipe.model.size].output),
        }
    )
    transform = harmonizer(recipe) if rule.transform is None else rule.transform(recipe.train, noisy)
    return Learner(modules, make_optimizer(recipe.train, modules), transform)


def options_of(recipe: Config, rule: Rule) -> StepOptions:
    """How the recipe takes a step, weighed as the rule wants it."""
    options = step_options(recipe, step=0)
    return replace(options, weigh=rule.weigh, extras=rule.extras or options.extras)


def take_step(learners: list[Learner], inputs: dict[str, Tensor], options: StepOptions, rate: float) -> StepResult:
    """One step of all learners; the result is the first one's."""
    for learner in learners:
        set_learning_rate(learner.optimizer, rate)
    return co_teach(learners, inputs, options)[0] if len(learners) > 1 else train_step(learners[0], inputs, options)


def clip_weights(result: StepResult, clips: int) -> Tensor:
    """Weights (B, K) of the clips; the clips of a group share its weights."""
    if result.weights is None:
        return torch.ones(clips, len(result.terms))
    return result.weights.repeat_interleave(clips // len(result.weights), 0)
