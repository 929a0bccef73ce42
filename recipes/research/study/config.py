"""The keys of a study: worlds, noise and rules."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from recipes.config import BILLION
from recipes.keys import key
from recipes.research.study.noise import Kind
from recipes.research.study.rules import RULES
from recipes.research.study.table import Row
from recipes.research.study.world import WorldConfig


@dataclass
class CellConfig:
    """One point of the study: a world, its noise, and the rules that are compared there."""

    world: str = key(meaning="one of worlds")
    kind: Kind = key("text", "of the noise, see recipes/research/study/noise.py")
    share: float = key(0.6, "of the clips that have the noise", least=0, most=1)
    clips: int | None = key(None, "in place of the world's", least=2, most=BILLION)
    trusted: int = key(0, "clips more, known to be right; all rules train on them", least=0, most=BILLION)
    audio_attributes: int | None = key(None, "in place of the world's", least=0, most=3)
    steps: int | None = key(None, "in place of the world's", least=1, most=BILLION)
    rules: list[str] = key(meaning="what to compare, see recipes/research/study/rules.py")

    def problems(self) -> Iterator[str]:
        for rule in self.rules:
            if rule in RULES and RULES[rule].prepare is not None and not self.trusted:
                yield f"rules: {rule!r} needs trusted clips: trusted=256, for example"
            if rule not in RULES:
                yield f"rules: {rule!r} is not one of {', '.join(RULES)}"


@dataclass
class StudyConfig:
    """A study, and what to do with it."""

    seeds: list[int] = key(meaning="one run each", least=0, most=2**32 - 1)
    worlds: dict[str, WorldConfig] = key(meaning="by name")
    cells: dict[str, CellConfig] = key(meaning="by name")
    out: Path = key(Path("docs/study"), "folder of tables and plots")
    row: str | None = key(None, "CELL/RULE/SEED: run this one again, and compare it with the table")
    part: str = key("1/1", "i/n: run the i-th of n parts; start a process for each")

    def world(self, name: str) -> WorldConfig:
        """The world of a cell, with the cell's changes."""
        cell = self.cells[name]
        changes = {"clips": cell.clips, "audio_attributes": cell.audio_attributes}
        world = replace(self.worlds[cell.world], **{key: value for key, value in changes.items() if value is not None})
        world = replace(world, clips=world.clips + cell.trusted)
        return world if cell.steps is None else replace(world, train=replace(world.train, steps=cell.steps))

    def rows(self) -> list[Row]:
        """All runs, cell by cell, and within a cell seed by seed: an unfinished cell has whole pairs."""
        return [Row(name, rule, s) for name, cell in self.cells.items() for s in self.seeds for rule in cell.rules]

    def rows_of_part(self) -> list[Row]:
        number, parts = map(int, self.part.split("/"))
        return self.rows()[number - 1 :: parts]

    def problems(self) -> Iterator[str]:
        for name, cell in self.cells.items():
            if cell.world not in self.worlds:
                yield f"cells.{name}.world={cell.world!r}: expected one of {', '.join(self.worlds)}"
        number = re.fullmatch(r"(\d{1,6})/(\d{1,6})", self.part)
        if number is None or not 1 <= int(number[1]) <= int(number[2]):
            yield f"part={self.part}: expected i/n with i from 1 to n, for example 2/3"
        if self.row is not None and Row.parse(self.row)[:2] not in {row[:2] for row in self.rows()}:
            yield f"row={self.row}: the study has no such run; its cells are {', '.join(self.cells)}"
