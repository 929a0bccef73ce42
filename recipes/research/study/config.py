"""The configuration of a study: worlds, noise and rules, checked before any work starts."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from omegaconf import MISSING

from recipes import keys
from recipes.config import ClipFormat, CorpusConfig, ModelConfig, ObjectiveConfig
from recipes.errors import ConfigError
from recipes.research.study.noise import KINDS
from recipes.research.study.rules import RULES
from recipes.research.study.train import Settings


@dataclass
class WorldConfig:
    """Where clips come from: features that are drawn, or pictures, sound and captions of the procedural corpus."""

    source: Literal["features", "media"] = "features"
    clips: int = 1024  # to train on; of media at most what the corpus has
    test_clips: int = 400
    heard: int = 3  # of the three attributes that words tell, how many sound tells too; features only
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    clip: ClipFormat = field(default_factory=ClipFormat)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    train: Settings = field(default_factory=Settings)


@dataclass
class CellConfig:
    """One point of the study: a world, its noise, and the rules that are compared there."""

    world: str = MISSING
    kind: str = "text"
    share: float = 0.6
    clips: int | None = None  # in place of the world's
    heard: int | None = None  # in place of the world's
    steps: int | None = None  # in place of the world's
    rules: list[str] = MISSING


@dataclass
class StudyConfig:
    """A study."""

    seeds: list[int] = MISSING
    worlds: dict[str, WorldConfig] = MISSING
    cells: dict[str, CellConfig] = MISSING

    def world(self, cell: str) -> WorldConfig:
        """The world of a cell, with what the cell changes in it."""
        chosen = self.cells[cell]
        changes = {name: value for name in ("clips", "heard") if (value := getattr(chosen, name)) is not None}
        world = replace(self.worlds[chosen.world], **changes)
        return world if chosen.steps is None else replace(world, train=replace(world.train, steps=chosen.steps))


def load(path: Path) -> StudyConfig:
    """Read a study.

    Raises:
        ConfigError: Unknown keys, worlds, kinds or rules; the message names file and cell.
    """
    study = keys.fill(StudyConfig, path)
    problems = keys.problems(study)
    for name, cell in study.cells.items():
        known = {"world": study.worlds, "kind": KINDS}
        problems += [
            f"cells.{name}.{key}={getattr(cell, key)!r}: expected one of {', '.join(names)}"
            for key, names in known.items()
            if getattr(cell, key) not in names
        ]
        problems += [
            f"cells.{name}.rules: {rule!r} is not one of {', '.join(RULES)}" for rule in cell.rules if rule not in RULES
        ]
        if not 0 <= cell.share <= 1:
            problems.append(f"cells.{name}.share={cell.share} must be between 0 and 1")
    if problems:
        raise ConfigError(f"{path} cannot be run:\n" + "\n".join(f"  - {p}" for p in problems))
    return study
