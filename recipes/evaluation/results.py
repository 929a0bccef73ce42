"""The result of an evaluation: as JSON for programs, as a Markdown table beside what others report for people."""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from recipes.data.skipped import Skipped
from recipes.evaluation.leakage import Leakage
from recipes.files import write_atomically
from recipes.keys import key
from recipes.restore import RestoreKeys
from recipes.training import checkpoint

REPORTED = Path(__file__).with_name("reported.csv")  # figures of papers
Figures = dict[str, Any]


@dataclass
class EvaluationKeys(RestoreKeys):
    """Keys of every evaluation."""

    out: Path | None = key(None, "file ending in .json to write the result to, and its table beside it (.md)")
    allow_leakage: bool = key(False, "evaluate also on clips that were trained on, and mark the result")

    def problems(self) -> Iterator[str]:
        """A file of another kind."""
        if self.out is not None and self.out.suffix != ".json":
            yield f"out={self.out}: expected a name that ends in .json"


@dataclass(frozen=True)
class Result:
    """What was evaluated, how, and what came out; plain values."""

    task: str
    checkpoint: Path  # its folder
    data: str  # name of what it was evaluated on
    protocol: dict[str, Any]  # numbers of windows, splits, the kind of probe ...
    counts: dict[str, int]  # of clips, of those skipped or missing ...
    leakage: Leakage
    figures: Figures  # as the task arranges them
    table: str  # the same, in Markdown
    skipped: list[Skipped]  # the clips that could not be read

    @property
    def summary(self) -> str:
        """What it was evaluated on, and what was left out, in a line."""
        counts = ", ".join(f"{name}: {count}" for name, count in self.counts.items())
        return f"{self.task} on {self.data}; {counts}; {self.leakage.summary}."

    def write(self, out: Path) -> None:
        """Write all of it and the figures that others report as JSON, and the table beside it, ending in .md."""
        facts = asdict(self)
        facts["checkpoint"] = {"folder": str(self.checkpoint), "step": checkpoint.load_facts(self.checkpoint)["step"]}
        facts["reported"] = [row._asdict() for row in reported(self.task, self.data)]
        write_atomically(out, json.dumps(facts, indent=1, ensure_ascii=False))
        write_atomically(out.with_suffix(".md"), f"{self.table}\n\n{self.summary}\n")


class Reported(NamedTuple):
    """Figures that a paper reports of a model, under the names that the task uses."""

    task: str
    data: str
    part: str  # of the task, a direction of retrieval for example, or ""
    model: str
    figures: dict[str, float]
    source: str

    @property
    def cited(self) -> str:
        """The model and the paper."""
        return f"{self.model} ({self.source})"


def reported(task: str, data: str) -> list[Reported]:
    """What others report of a task on a data set."""
    with REPORTED.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["task"], row["data"]) == (task, data)]
    named = [{name: row.pop(name) for name in Reported._fields if name in row} for row in rows]
    figures = [{name: float(value) for name, value in row.items() if value} for row in rows]
    return [Reported(**names, figures=values) for names, values in zip(named, figures, strict=True)]


def percent(share: float | None) -> str:
    """A share as per cent; "" for none."""
    return "" if share is None else f"{100 * share:.1f}"


def markdown(rows: Sequence[dict[str, str]]) -> str:
    """A Markdown table; its columns are the keys of the rows, the first two to the left, numbers to the right."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    rules = ["---" if place < 2 else "---:" for place in range(len(columns))]
    lines = [f"| {' | '.join(columns)} |", f"|{'|'.join(rules)}|"]
    return "\n".join(lines + [f"| {' | '.join(row.get(column, '') for column in columns)} |" for row in rows])
