"""One run of the study: a world, a kind of noise, a rule; training, and what came of it."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

import harmony
from recipes.evaluation import ranking
from recipes.research.study.clips import Clips, World
from recipes.research.study.noise import Noisy
from recipes.research.study.rules import Context, Rule

Build = Callable[[Rule], nn.ModuleDict]
EMBEDDED_AT_ONCE = 256
LAST = 0.25  # share of the steps, the last ones, over which it is counted what a rule keeps


@dataclass
class Settings:
    """How to train."""

    steps: int = 600
    batch_size: int = 32
    lr: float = 1e-3
    warmup: int = 50
    evaluate_every: int = 60


@dataclass
class Outcome:
    """What came of a run.

    Attributes:
        curve: A row for each evaluation: step, CPU seconds of training so far, and figures of retrieval.
        probe: Accuracy of a linear classifier of concepts on the frozen representation of the video.
        kept: Mean weight of the pairs of each loss {"va", "vt"} in the last quarter of the run.
        kept_aligned: Share of that weight on aligned pairs.
        kept_rare: Mean weight of clips of rare concepts.
        cosine: Mean agreement, and share of negative ones; NaN for rules that need no gradients.
    """

    curve: list[dict[str, float]] = field(default_factory=list)
    probe: float = math.nan
    kept: dict[str, float] = field(default_factory=dict)
    kept_aligned: dict[str, float] = field(default_factory=dict)
    kept_rare: float = math.nan
    cosine: tuple[float, float] = (math.nan, math.nan)


@dataclass
class Learner:
    """A model with its objective, and the state of the rule that weighs its clips."""

    modules: nn.ModuleDict
    optimizer: torch.optim.Optimizer
    transform: harmony.Transform
    state: Any


class Seen(NamedTuple):
    """What a step saw: weights (B, K) of the pairs, and the agreement (B,) where gradients were read."""

    weights: Tensor
    agreement: Tensor | None


def run(world: World, noisy: Noisy, rule: Rule, settings: Settings, build: Build, seed: int) -> Outcome:
    """Train by a rule, and evaluate.

    Args:
        world: Clips to test on, and the clean ones for the probe.
        noisy: Clips to train on.
        rule: How clips are weighed.
        settings: How to train.
        build: Makes {"model", "objective"} of a rule, from torch's random state.
        seed: Of the models and of the order of the clips.
    """
    context = Context(len(noisy.clips), settings.steps, settings.batch_size, noisy.aligned)
    torch.manual_seed(seed)
    learners = []
    for _ in range(rule.networks):
        modules, transform = build(rule), rule.transform(context)
        learners.append(
            Learner(modules, torch.optim.Adam(modules.parameters(), settings.lr), transform, transform.init())
        )
    outcome, spent = Outcome(), 0.0
    late: list[tuple[Tensor, Seen]] = []
    for step, rows in enumerate(batches(len(noisy.clips), settings, seed)):
        batch = noisy.clips.batch(rows)
        began = time.process_time()
        for learner in learners:
            for group in learner.optimizer.param_groups:
                group["lr"] = learning_rate(step, settings)
        seen = read_step(learners[0], rule, batch) if rule.gram is not None else plain_step(learners, rule, batch)
        spent += time.process_time() - began
        if step >= (1 - LAST) * settings.steps:
            late.append((rows, seen))
        if (step + 1) % settings.evaluate_every == 0 or step + 1 == settings.steps:
            found = retrieve(learners[0].modules, world)
            outcome.curve.append({"step": step + 1, "cpu_seconds": spent, **found})
    outcome.probe = probe(learners[0].modules, world)
    _summarize(outcome, late, noisy, world)
    return outcome


def plain_step(learners: list[Learner], rule: Rule, batch: dict[str, Tensor]) -> Seen:
    """A step that reads no gradients of single clips. Of two learners, each is weighed by the other: co-teaching."""
    all_terms, weights = [], []
    for learner in learners:
        embeddings = learner.modules["model"](**batch)
        terms = torch.stack(list(learner.modules["objective"](embeddings).values()), 1)
        gram = torch.eye(terms.shape[1]).expand(len(terms), -1, -1)  # every clip has both losses; nothing reads more
        extras = {} if rule.extras is None else rule.extras(learner.modules["objective"], embeddings)
        own, learner.state = learner.transform.update(
            gram, learner.state, terms=terms.detach(), ids=batch["index"], **extras
        )
        all_terms.append(terms)
        weights.append(own)
    for learner, terms, weight in zip(learners, all_terms, reversed(weights), strict=True):
        learner.optimizer.zero_grad(set_to_none=True)
        (weight * terms).mean(0).sum().backward()
        learner.optimizer.step()
    return Seen(weights[-1].detach(), None)


def read_step(learner: Learner, rule: Rule, batch: dict[str, Tensor]) -> Seen:
    """A harmonized step."""
    learner.optimizer.zero_grad(set_to_none=True)
    info, learner.state = harmony.backward(
        learner.modules["model"], batch, learner.modules["objective"], learner.transform, learner.state,
        ids=batch["index"], extras=rule.extras and partial(rule.extras, learner.modules["objective"]), **rule.gram,
    )  # fmt: skip
    learner.optimizer.step()
    clips = info.weights.repeat_interleave(len(info.terms) // len(info.weights), 0)  # of groups: to each of its clips
    return Seen(clips, info.agreement)


def batches(clips: int, settings: Settings, seed: int) -> Iterator[Tensor]:
    """Rows of each batch; every epoch all clips in a new order, but for those that do not fill a batch."""
    g, step = torch.Generator().manual_seed(seed), 0
    while step < settings.steps:
        for rows in torch.randperm(clips, generator=g).split(settings.batch_size):
            if len(rows) == min(settings.batch_size, clips) and step < settings.steps:
                yield rows
                step += 1


def learning_rate(step: int, settings: Settings) -> float:
    """Warm-up, then half a cosine down to zero."""
    warm = min((step + 1) / max(settings.warmup, 1), 1.0)
    return settings.lr * warm * 0.5 * (1 + math.cos(math.pi * step / settings.steps))


@torch.no_grad()
def embed(modules: nn.ModuleDict, clips: Clips) -> dict[str, Tensor]:
    """Representations of clips in evaluation mode: what the model gives, and the pairs of both spaces."""
    modules.eval()
    parts = []
    for rows in torch.arange(len(clips)).split(EMBEDDED_AT_ONCE):
        representation = modules["model"](**clips.batch(rows))
        spaces = modules["objective"].project(representation)
        parts.append(
            {"representation": representation["video"]}
            | {
                f"{name}_{side}": x.flatten(1)
                for name, pair in spaces.items()
                for side, x in zip("vo", pair, strict=True)
            }
        )
    modules.train()
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def retrieve(modules: nn.ModuleDict, world: World) -> dict[str, float]:
    """Retrieval of the videos of the test clips by their texts and sounds."""
    found = embed(modules, world.test)
    text = ranking.ranks(found["vt_o"], found["vt_v"], tie=0.0)  # no two test clips are copies
    sound = ranking.ranks(found["va_o"], found["va_v"], tie=0.0)
    rare = world.rare[world.test.concept]
    return {
        **{f"text R@{k}": float((text <= k).double().mean()) for k in ranking.RECALLS},
        "text median rank": float(text.double().median()),
        "text R@10 rare": float((text[rare] <= 10).double().mean()),
        "sound R@10": float((sound <= 10).double().mean()),
    }


def probe(modules: nn.ModuleDict, world: World) -> float:
    """Accuracy on the test clips of a logistic regression of concepts, fitted to the clean training clips."""
    train, test = (embed(modules, clips)["representation"].double().numpy() for clips in (world.train, world.test))
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    classifier.fit(train, world.train.concept.numpy())
    return float(classifier.score(test, world.test.concept.numpy()))


def _summarize(outcome: Outcome, late: list[tuple[Tensor, Seen]], noisy: Noisy, world: World) -> None:
    """What a rule kept at the end."""
    rows = torch.cat([rows for rows, _ in late])
    weights = torch.cat([seen.weights for _, seen in late]).double()
    aligned = noisy.aligned[rows].double()
    for k, name in enumerate(("va", "vt")):
        total = weights[:, k].sum()
        outcome.kept[name] = float(weights[:, k].mean())
        outcome.kept_aligned[name] = float((weights * aligned)[:, k].sum() / total) if total else math.nan
    outcome.kept_rare = float(weights[world.rare[noisy.clips.concept[rows]]].mean())
    if late[0][1].agreement is not None:
        cosines = torch.cat([seen.agreement for _, seen in late]).double()
        outcome.cosine = float(cosines.nanmean()), float((cosines[~cosines.isnan()] < 0).double().mean())
