"""Measure what recomputing, chunks and compiling do to a step of the recipe: time and peak memory.

OMP_NUM_THREADS=1 python -m recipes.research.benchmark options --config recipes/configs/demo.yaml repeats=9
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor

from recipes import keys
from recipes.config import Config
from recipes.data import vocabulary
from recipes.keys import key, section
from recipes.model.build import build, device_of, model_inputs
from recipes.model.harmonizer import harmonizer
from recipes.progress import progress_bar
from recipes.research.benchmark import machine, peak, tables
from recipes.research.benchmark.racing import MIB, Entrant, Rules, Timing, quartiles, race, reported
from recipes.research.benchmark.suite import RaceKeys, RecipeCommand, demo, unknown
from recipes.research.benchmark.workloads import random_clips
from recipes.training.precision import loss_scale
from recipes.training.setup import make_optimizer, step_options
from recipes.training.step import Learner, train_step

PLAIN = "plain"
WORDS = 200
_PLAIN = ["harmonize=none", "gram.every=0"]
_HARMONIZED = ["harmonize=both", "gamma.start=-1", "gamma.end=-1"]  # a step that drops every clip is not taken
VARIANTS = {
    PLAIN: _PLAIN,
    "plain, train.compile": [*_PLAIN, "train.compile=true"],
    "plain, model.checkpoint": [*_PLAIN, "model.checkpoint=true"],
    "plain, chunks of 8 by features": ["harmonize=none", "gram.space=features", "gram.chunk_size=8"],
    "harmonized": _HARMONIZED,
    "harmonized, model.checkpoint": [*_HARMONIZED, "model.checkpoint=true"],
    "harmonized, gram.chunk_size=8": [*_HARMONIZED, "gram.chunk_size=8"],
    "harmonized, both": [*_HARMONIZED, "model.checkpoint=true", "gram.chunk_size=8"],
}


@dataclass
class OptionsKeys(RaceKeys):
    """What to measure, and of which run."""

    variants: list[str] = key(list(VARIANTS), "those that are measured beside the plain step")
    measure: Literal["both", "time", "memory"] = key("both", "of a step")
    recipe: Config = section(demo, "the run")

    def problems(self) -> Iterator[str]:
        yield from unknown("variants", self.variants, list(VARIANTS))


@dataclass
class Result(Timing):
    """What was measured of a step; ``label`` is the variant."""

    label: str


def run(settings: OptionsKeys) -> None:
    recipe = settings.recipe
    results = [Result(name) for name in dict.fromkeys([PLAIN, *settings.variants])]
    if settings.measure != "memory":
        with progress_bar(total=settings.repeats + 1, desc=recipe.run.name, unit="round") as bar:
            measure_time(
                results, recipe, Rules(settings.repeats, settings.limit, device_of(recipe.train).type), bar.update
            )
    if settings.measure != "time":
        measure_memory(results, recipe, timeout=120 + 20 * settings.limit)
    run_facts = {"run": recipe.run.name, "model": recipe.model.size, "batch": recipe.train.batch_size}
    about = machine.facts(device_of(recipe.train).type)
    rows = [run_facts | {"variant": r.label} | r.columns() | about for r in results]
    text = report(results, run_facts, about)
    tables.show(text, tables.write(settings.out, f"options-{recipe.run.name}", rows, text))


def variant(recipe: Config, name: str) -> Config:
    return keys.load(Config, overrides=VARIANTS[name], base=recipe)


def measure_time(
    results: list[Result], recipe: Config, rules: Rules, advance: Callable[[], Any] = lambda: None
) -> None:
    """Time variants in rounds, each on the same batch within a round. What fails says why, and is left out."""
    trainers, entrants = [], []
    for result in results:
        with reported(result):
            trainers.append(trainer := Trainer(variant(recipe, result.label)))
            entrants.append(Entrant(result, trainer.step))
    if entrants:
        race(entrants, rules, lambda: trainers[0].draw(recipe.train.batch_size), advance)
    for result in results:
        result.relate(results[0].seconds)  # of the plain step


def measure_memory(results: list[Result], recipe: Config, timeout: float) -> None:
    """Fill in the peak memory of a step, each in a process of its own."""
    with TemporaryDirectory(prefix="benchmark-") as folder:
        path = Path(folder) / "config.yaml"
        for result in results:
            if not result.skipped:
                with reported(result):
                    keys.save(variant(recipe, result.label), path)
                    result.memory = peak.alone(__name__, {"path": str(path)}, timeout)


def one_step(path: str) -> tuple[Callable[[], Any], str]:
    """A step of a configuration on a batch, after a warm-up, and its device; see `peak`."""
    config = keys.load(Config, path)
    trainer = Trainer(config)
    trainer.step(trainer.draw(config.train.batch_size if config.train.compile else peak.WARM_UP))
    return partial(trainer.step, trainer.draw(config.train.batch_size)), trainer.device.type


class Trainer:
    """The recipe's training step on random clips."""

    def __init__(self, config: Config) -> None:
        torch.manual_seed(config.train.seed)
        self.clip, self.device = config.clip, device_of(config.train)
        tokenizer = vocabulary.build(f"word{i}" for i in range(WORDS))
        self.words = tokenizer.get_vocab_size()
        modules = build(config, tokenizer).to(self.device)
        scale = loss_scale(config.train)
        self.learner = Learner(modules, make_optimizer(config.train, modules), harmonizer(config), loss_scale=scale)
        forward = torch.compile(modules["model"]) if config.train.compile else None
        self.options = step_options(config, step=1, forward=forward)

    def draw(self, size: int) -> dict[str, Tensor]:
        return random_clips(self.clip, self.words, size)

    def step(self, batch: dict[str, Tensor]) -> None:
        """Train on a batch; a RuntimeError says why the step was not taken."""
        result = train_step(self.learner, model_inputs(batch, self.device), self.options)
        if not result.taken:
            raise RuntimeError(f"a step was not taken: {result.reason}")


def report(results: list[Result], run_facts: dict[str, Any], about: dict[str, Any]) -> str:
    rows = []
    for r in results:
        seconds, ratio = quartiles(r.seconds)[1], quartiles(r.ratios)[1]
        times = [f"{seconds:.3f}" if r.seconds else "", f"{ratio:.2f}" if r.ratios else ""]
        rows.append([r.label, *times, "" if r.memory is None else f"{r.memory / MIB:.0f}", r.skipped])
    lines = [
        "## Options of a step: {run}, model {model}, B={batch}".format(**run_facts),
        "",
        f"{machine.described(about)}. Medians, ratios taken round by round to the plain step; memory is the peak of a "
        "step above model, optimizer and batch.",
        "",
        *tables.markdown(["step", "seconds", "to plain", "MiB", "skipped"], rows, words=(0, 4)),
    ]
    return "\n".join(lines) + "\n"


COMMAND = RecipeCommand("recipes.research.benchmark options", __doc__, OptionsKeys, run)
