"""What every suite writes: a CSV with everything, and a Markdown table for people."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.files import write_atomically
from recipes.research.benchmark.racing import quartiles


def write(out: Path, stem: str, rows: list[dict[str, Any]], text: str) -> list[Path]:
    """Write a suite's records and its report into a folder; returns the two files."""
    out.mkdir(parents=True, exist_ok=True)
    table, report = out / f"{stem}.csv", out / f"{stem}.md"
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: as_cell(value) for key, value in row.items()} for row in rows)
    write_atomically(table, lines.getvalue())
    write_atomically(report, text)
    return [table, report]


def show(text: str, files: Sequence[Path]) -> None:
    print(text)
    print("written: " + ", ".join(map(str, files)))


def as_cell(value: Any) -> Any:
    """A value as tables have it: a float with six digits, empty for NaN and None."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return "" if value is None else value


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int] = (0,)) -> list[str]:
    """Lines of a Markdown table; the columns ``words`` go to the left, and a row may be shorter than the head."""
    rules = ["---" if place in words else "---:" for place in range(len(head))]
    cells = [[*(cell.replace("|", "\\|") for cell in row), *[""] * (len(head) - len(row))] for row in rows]
    return [f"| {' | '.join(head)} |", f"|{'|'.join(rules)}|", *(f"| {' | '.join(row)} |" for row in cells)]


def median(values: list[float], digits: int) -> str:
    """A median with its quartiles in brackets; empty for no values."""
    low, middle, high = quartiles(values)
    return "" if math.isnan(middle) else f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
