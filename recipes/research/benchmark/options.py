"""Measure what recomputing, chunks and compiling do to a step of the recipe: time and peak memory.

OMP_NUM_THREADS=1 python -m recipes.research.benchmark options --config recipes/configs/demo.yaml repeats=9
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from recipes import cli, keys
from recipes.config import Config
from recipes.data import vocabulary
from recipes.keys import key, section
from recipes.model.build import build, device_of
from recipes.model.harmonizer import harmonizer
from recipes.progress import progress_bar
from recipes.research.benchmark import machine, peak, tables
from recipes.research.benchmark.clips import random_clips
from recipes.research.benchmark.racing import Entrant, Rules, Timing, race, reported
from recipes.research.benchmark.suite import RaceKeys, RecipeCommand, demo
from recipes.training.precision import loss_scale
from recipes.training.step import train_step

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

    variants: list[str] = key([], "names of those that are measured beside the plain step; []: all")
    measure: Literal["both", "time", "memory"] = key("both", "of a step")
    recipe: Config = section(demo, "the run")

    def problems(self) -> Iterator[str]:
        """Variants that do not exist."""
        for name in self.variants:
            if name not in VARIANTS:
                yield f"variants: no {name!r} among {', '.join(VARIANTS)}"


@dataclass
class Result(Timing):
    """What was measured of a step; ``label`` is the variant."""

    label: str


def run(settings: OptionsKeys) -> None:
    """Time, measure, write."""
    recipe = settings.recipe
    results = [Result(name) for name in dict.fromkeys([PLAIN, *(settings.variants or VARIANTS)])]
    if settings.measure != "memory":
        with progress_bar(total=settings.rounds + 1, desc=recipe.run.name, unit="round") as bar:
            measure_time(results, recipe, Rules(settings.rounds, settings.limit, device_of(recipe).type), bar.update)
    if settings.measure != "time":
        measure_memory(results, recipe, timeout=120 + 20 * settings.limit)
    run_facts = {"run": recipe.run.name, "model": recipe.model.size, "batch": recipe.train.batch_size}
    about = machine.facts(device_of(recipe).type)
    rows = [run_facts | {"variant": r.label} | r.columns() | about for r in results]
    text = report(results, run_facts, about)
    tables.show(text, tables.write(settings.out, f"options-{recipe.run.name}", rows, text))


def variant(recipe: Config, name: str) -> Config:
    """The configuration of a variant."""
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
    race(entrants, rules, lambda: trainers[0].draw(recipe.train.batch_size), advance)
    for result in results:
        result.relate(results[0].seconds)  # of the plain step


def measure_memory(results: list[Result], recipe: Config, timeout: float) -> None:
    """Fill in the peak memory of a step, each in a process of its own."""
    for result in results:
        if not result.skipped:
            with reported(result):
                request = {"recipe": keys.as_dict(variant(recipe, result.label))}
                result.memory = peak.alone(__name__, request, timeout)


def one_step(recipe: dict[str, Any]) -> tuple[Callable[[], Any], str]:
    """A step on a batch, after a warm-up, and its device; see `peak`."""
    config = keys.from_dict(Config, recipe)
    trainer = Trainer(config)
    trainer.step(trainer.draw(config.train.batch_size if config.train.compile else peak.WARM_UP))
    return partial(trainer.step, trainer.draw(config.train.batch_size)), trainer.device.type
