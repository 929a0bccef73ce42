"""The tables of a study, one line a run and one line an evaluation, written as runs finish."""

import csv
import fcntl
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from recipes.research.study.config import CellConfig, WorldConfig
from recipes.research.study.train import Outcome

RUNS, CURVES = "runs.csv", "curves.csv"
MEASURED = ("cpu_seconds", "torch")  # columns that differ from machine to machine


class Row(NamedTuple):
    """Names one run."""

    cell: str
    rule: str
    seed: int

    def __str__(self) -> str:
        return f"{self.cell}/{self.rule}/{self.seed}"


def parse(name: str) -> Row:
    """The row that a name such as ``center/small loss half/3`` stands for.

    Raises:
        ValueError: Another form.
    """
    parts = name.split("/")
    if len(parts) != 3 or not parts[2].isdigit():
        raise ValueError(f"expected CELL/RULE/SEED, as in 'center/baseline/0'; got {name!r}")
    return Row(parts[0], parts[1], int(parts[2]))


def run_line(row: Row, cell: CellConfig, world: WorldConfig, outcome: Outcome) -> dict[str, Any]:
    """One line of runs.csv; numbers as they are compared, with six digits."""
    last = outcome.curve[-1]
    figures = {name: value for name, value in last.items() if name not in ("step", "cpu_seconds")}
    numbers = {
        **figures,
        "best text R@10": max(point["text R@10"] for point in outcome.curve),
        "best sound R@10": max(point["sound R@10"] for point in outcome.curve),
        "probe": outcome.probe,
        **{f"kept {name}": value for name, value in outcome.kept.items()},
        **{f"kept aligned {name}": value for name, value in outcome.kept_aligned.items()},
        "kept rare": outcome.kept_rare,
        "cosine": outcome.cosine[0],
        "negative": outcome.cosine[1],
    }
    return {
        **row._asdict(), "world": cell.world, "kind": cell.kind, "share": cell.share, "clips": world.clips,
        "heard": world.heard, "steps": int(last["step"]),
        **{name: "" if math.isnan(value) else f"{value:.6g}" for name, value in numbers.items()},
        "cpu_seconds": f"{last['cpu_seconds']:.2f}", "torch": torch.__version__.split("+")[0],
    }  # fmt: skip


def curve_lines(row: Row, outcome: Outcome) -> list[dict[str, Any]]:
    """Lines of curves.csv."""
    return [
        row._asdict() | {name: f"{value:.6g}" for name, value in point.items()} | {"step": int(point["step"])}
        for point in outcome.curve
    ]


def append(path: Path, lines: list[dict[str, Any]]) -> None:
    """Add lines to a table, whole and one process after the other; the first line of the file names the columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        writer = csv.DictWriter(file, fieldnames=list(lines[0]), lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerows(lines)


def read(path: Path) -> list[dict[str, str]]:
    """The lines of a table; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def row_of(line: dict[str, str]) -> Row:
    """Which run a line is of."""
    return Row(line["cell"], line["rule"], int(line["seed"]))


def differences(old: dict[str, str], new: dict[str, Any]) -> list[str]:
    """What differs between two lines of one run, but for what is measured in seconds."""
    return [
        f"{name}: {old.get(name)} in the table, {new[name]} now"
        for name in new
        if name not in MEASURED and str(old.get(name)) != str(new[name])
    ]


def values(lines: Iterable[dict[str, str]], cell: str, rule: str, metric: str) -> dict[int, float]:
    """A figure by seed."""
    return {
        int(line["seed"]): float(line[metric])
        for line in lines
        if line["cell"] == cell and line["rule"] == rule and line[metric] != ""
    }
