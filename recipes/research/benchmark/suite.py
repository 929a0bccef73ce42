"""What the keys of the suites share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from recipes import config as configuration
from recipes import keys
from recipes.cli import Command
from recipes.config import Config
from recipes.keys import key
from recipes.research.benchmark.racing import Rules


@dataclass
class SuiteKeys:
    """Keys of every suite that writes."""

    out: Path = key(Path("runs/benchmark"), "folder of the tables and plots")


@dataclass
class RaceKeys(SuiteKeys):
    """Keys of a suite in which entrants are timed in turns."""

    repeats: int = key(5, "rounds", least=1)
    limit: float = key(60.0, "seconds that a call may take; slower entrants are skipped", more_than=0)


@dataclass
class DeviceKeys(RaceKeys):
    """Keys of a race on a device."""

    device: Literal["cpu", "cuda"] = key("cpu", "to compute on")

    def problems(self) -> Iterator[str]:
        if self.device == "cuda" and not torch.cuda.is_available():
            yield "device=cuda: there is no CUDA device here"

    def rules(self, at_least: float = 0.0) -> Rules:
        return Rules(self.repeats, self.limit, self.device, at_least)


@dataclass
class CompileKeys(DeviceKeys):
    """Keys of a race that `torch.compile` may take part in."""

    compile: bool = key(False, "run everything once more through torch.compile")


def demo() -> Config:
    return configuration.load(configuration.DEMO)


class RecipeCommand(Command[Any]):
    """A suite whose keys hold a section ``recipe``, the configuration of a run; --config is that run's file."""

    def load(self, path: Path | None, overrides: Sequence[str]) -> Any:
        """The keys; ``recipe.*`` overrides what the file says, or the demo's."""
        recipe = demo() if path is None else configuration.load(path)
        return keys.load(self.keys, overrides=overrides, base=self.keys(recipe=recipe))


def unknown(name: str, chosen: Sequence[str], known: Sequence[str]) -> Iterator[str]:
    """Sentences about the values of a key that are no names."""
    for value in chosen:
        if value not in known:
            yield f"{name}: no {value!r} among {', '.join(known)}"
