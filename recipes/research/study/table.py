"""The tables of a study: runs.csv has a line per run, curves.csv a line per evaluation. Runs append as they finish."""

import csv
import fcntl
from pathlib import Path
from typing import Any, NamedTuple

from recipes.research.benchmark.tables import as_cell

RUNS, CURVES = "runs.csv", "curves.csv"
MEASURED = ("cpu_seconds", "torch")  # columns that differ from machine to machine

Line = dict[str, str]


class Row(NamedTuple):
    """The name of one run."""

    cell: str
    rule: str
    seed: int

    def __str__(self) -> str:
        return f"{self.cell}/{self.rule}/{self.seed}"

    @classmethod
    def parse(cls, name: str) -> "Row":
        """The row with a name such as ``center/small loss half/3``."""
        parts = name.split("/")
        if len(parts) != 3 or not parts[2].isdecimal():
            raise ValueError(f"row={name}: expected CELL/RULE/SEED, as in 'center/baseline/0'")
        return cls(parts[0], parts[1], int(parts[2]))

    @classmethod
    def of_line(cls, line: Line) -> "Row":
        return cls(line["cell"], line["rule"], int(line["seed"]))


def append_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Add lines to a table under a lock; a new file begins with the names of the columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", newline="", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        header = file.readline()
        columns = next(csv.reader([header])) if header else list(lines[0])
        if sorted(columns) != sorted(lines[0]):
            raise ValueError(f"{path} has other columns, it was written by another version: choose another out=")
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if not header:
            writer.writeheader()
        writer.writerows({name: as_cell(value) for name, value in line.items()} for line in lines)


def read_lines(path: Path) -> list[Line]:
    """The lines of a table; none if the file does not exist."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def differences(old: Line, new: dict[str, Any]) -> list[str]:
    """The columns in which two lines of one run differ, except those that depend on the machine."""
    return [
        f"{name}: {old.get(name)} in the table, {as_cell(new[name])} now"
        for name in new
        if name not in MEASURED and old.get(name) != str(as_cell(new[name]))
    ]
