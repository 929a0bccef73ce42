"""What the options of a step cost and save: time and peak memory of the recipe's own step, as a configuration has it.

python -m recipes.research.benchmark.options '{"config": "recipes/configs/demo.yaml", "overrides": [...]}' prints bytes.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from recipes import config as configuration
from recipes.config import Config
from recipes.data import vocabulary
from recipes.model.build import build, device_of, model_inputs
from recipes.model.harmonizer import harmonizer
from recipes.research.benchmark import memory
from recipes.research.benchmark.timing import quartiles, relate, reported, timed
from recipes.research.benchmark.workloads import Batch, random_clips
from recipes.training.precision import loss_scale
from recipes.training.setup import step_options
from recipes.training.step import Learner, train_step

PLAIN = "plain"
WORDS = 200
MIB = 2**20
_PLAIN = ["harmonize=none", "gram.every=0"]
_HARMONIZED = ["harmonize=both", "gamma.start=-1", "gamma.end=-1"]  # a step of which all is dropped is not taken
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
class Result:
    """What was found of a variant.

    Attributes:
        label: The variant.
        seconds: Of a step, in each round; empty where it was not timed.
        relative: The same divided by the plain step of the same round.
        memory: Peak of a step in bytes, above what model, optimizer and batch take.
        skipped: Why it was not measured.
    """

    label: str
    seconds: list[float] = field(default_factory=list)
    relative: list[float] = field(default_factory=list)
    memory: int | None = None
    skipped: str = ""


class Trainer:
    """The recipe's training step on random clips."""

    def __init__(self, config: Config) -> None:
        torch.manual_seed(config.train.seed)
        self.config = config
        self.device = device_of(config)
        tokenizer = vocabulary.build(f"word{i}" for i in range(WORDS))
        self.words = tokenizer.get_vocab_size()
        self.modules = build(config, tokenizer).to(self.device)
        optimizer = torch.optim.Adam(self.modules.parameters(), lr=config.train.lr)
        self.learner = Learner(self.modules, optimizer, harmonizer(config), loss_scale=loss_scale(config.train))
        forward = torch.compile(self.modules["model"]) if config.train.compile else None
        self.options = step_options(config, 1, forward=forward)

    def draw(self, size: int) -> dict[str, Any]:
        """So many clips."""
        clips: Batch = random_clips(self.config.clip, self.words, size)
        names = {"id": [str(i) for i in range(size)], "captions": [[]] * size, "start": torch.zeros(size)}
        return {**clips, **names}

    def step(self, batch: dict[str, Any]) -> None:
        """Train on a batch."""
        result = train_step(self.learner, model_inputs(batch, self.device), self.options)
        if not result.taken:
            raise RuntimeError(f"a step was not taken: {result.reason}")


def race(
    path: Path, overrides: list[str], names: list[str], repeats: int, advance: Callable[[], Any] = lambda: None
) -> list[Result]:
    """Time variants, each on the same batch in every round; the order rotates. What fails says why, and is left out.

    Args:
        path: The configuration.
        overrides: Of all variants.
        names: Variants; the plain step is always among them.
        repeats: Rounds; 0 for none.
        advance: Called after the warm-up and each round, ``repeats + 1`` times.
    """
    results = {name: Result(name) for name in dict.fromkeys([PLAIN, *names])}
    trainers: dict[str, Trainer] = {}
    for name in results if repeats else ():
        with reported(results[name]):
            trainer = Trainer(configuration.load(path, [*overrides, *VARIANTS[name]]))
            trainer.step(trainer.draw(trainer.config.train.batch_size))
            trainers[name] = trainer
    advance()
    for number in range(repeats):
        order = list(trainers)
        if not order:
            break
        batch = trainers[order[0]].draw(trainers[order[0]].config.train.batch_size)
        first = number % len(order)
        for name in order[first:] + order[:first]:
            with reported(results[name]):
                trainer = trainers[name]
                results[name].seconds.append(timed(partial(trainer.step, batch), trainer.device.type))
            if results[name].skipped:
                del trainers[name]
        advance()
    for result in results.values():
        relate(result, results[PLAIN].seconds)
    return list(results.values())


def measure_memory(results: list[Result], path: Path, overrides: list[str], timeout: float) -> None:
    """Fill in the peak memory of a step, each in a process of its own."""
    for result in results:
        request = {"config": str(path), "overrides": [*overrides, *VARIANTS[result.label]]}
        with reported(result):
            result.memory = memory.alone(__name__, request, timeout)


def records(results: list[Result], config: Config, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """One flat record per variant."""
    rows = []
    for r in results:
        (low, median, high), (_, ratio, _) = quartiles(r.seconds), quartiles(r.relative)
        rows.append(
            {
                "run": config.run.name, "model": config.model.size, "batch": config.train.batch_size,
                "variant": r.label, "rounds": len(r.seconds), "seconds": median, "seconds_q1": low,
                "seconds_q3": high, "ratio": ratio,
                "memory_mib": None if r.memory is None else round(r.memory / MIB, 1), "skipped": r.skipped, **facts,
            }
        )  # fmt: skip
    return rows


def report(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    first = rows[0]
    machine = "{machine}, {threads} threads, torch {torch}, {date}".format(**first)
    lines = [
        f"## Options of a step: {first['run']}, model {first['model']}, B={first['batch']}",
        "",
        f"{machine}. Medians, ratios taken round by round to the plain step; memory is the peak of a step above model,",
        "optimizer and batch.",
        "",
        "| step | seconds | to plain | MiB |",
        "|---|---:|---:|---:|",
    ]
    for row in rows:
        timed_ = row["rounds"] > 0
        cells = [
            row["variant"],
            f"{row['seconds']:.3f}" if timed_ else "",
            f"{row['ratio']:.2f}" if timed_ else "",
            "" if row["memory_mib"] is None else f"{row['memory_mib']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |" + (f" {row['skipped']}" if row["skipped"] else ""))
    return "\n".join(lines) + "\n"


def measure(config: Config) -> int:
    """Peak memory of a step, in this process."""
    trainer = Trainer(config)
    trainer.step(trainer.draw(config.train.batch_size if config.train.compile else memory.WARM_UP))
    batch = trainer.draw(config.train.batch_size)
    return memory.peak_of(lambda: trainer.step(batch), trainer.device.type)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(measure(configuration.load(given["config"], given["overrides"])))
