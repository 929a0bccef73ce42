"""The result of an evaluation: as JSON for programs, as a Markdown table beside what others report for people."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from recipes.data.skipped import Skipped
from recipes.evaluation.leakage import Leakage
from recipes.files import write_atomically
from recipes.keys import key
from recipes.restore import RestoreKeys
from recipes.training import checkpoint

VATT = "Akbari et al. 2021, arXiv:2104.11178"
VATT_CODE = "github.com/google-research/google-research/tree/master/vatt, README"


class Reported(NamedTuple):
    """A figure that a paper reports.

    Attributes:
        task, data: Name of the task, and of the data set.
        part: What of the task: a direction of retrieval, say; "" for the whole.
        model: Name of the model.
        figures: Under the names that the task uses.
        source: The paper.
    """

    task: str
    data: str
    part: str
    model: str
    figures: dict[str, float]
    source: str = VATT

    @property
    def cited(self) -> str:
        """The model and the paper."""
        return f"{self.model} ({self.source})"


_TEXT_TO_VIDEO = {
    ("MSR-VTT 1k-A", "VATT-MA-Medium"): (0.236, 67),
    ("MSR-VTT 1k-A", "VATT, best modality-specific"): (0.297, 49),
    ("YouCook2", "VATT-MA-Medium"): (0.406, 17),
    ("YouCook2", "VATT, best modality-specific"): (0.455, 13),
}
_LINEAR = {  # means over the splits
    ("UCF101", "VATT-MA-Medium"): 0.844,
    ("UCF101", "VATT, best modality-specific"): 0.896,
    ("HMDB51", "VATT-MA-Medium"): 0.631,
    ("HMDB51", "VATT, best modality-specific"): 0.652,
    ("ESC-50", "VATT-MA-Medium"): 0.812,
    ("ESC-50", "VATT, best modality-specific"): 0.847,
}
_TOP_1_AND_5 = {
    ("Kinetics-400", "VATT-Base"): (0.796, 0.949),
    ("Kinetics-400", "VATT-Medium"): (0.811, 0.956),
    ("Kinetics-400", "VATT-Large"): (0.821, 0.955),
    ("Kinetics-400", "VATT-MA-Medium"): (0.799, 0.949),
    ("Kinetics-600", "VATT-Base"): (0.805, 0.955),
    ("Kinetics-600", "VATT-Medium"): (0.824, 0.961),
    ("Kinetics-600", "VATT-Large"): (0.836, 0.966),
    ("Kinetics-600", "VATT-MA-Medium"): (0.808, 0.955),
}
_AUDIOSET = {"VATT-Base": (0.394, 0.971, 2.895), "VATT-MA-Medium": (0.393, 0.970, 2.884)}
REPORTED = [
    *(
        Reported("retrieval", data, "text->video", model, {"R@10": recall, "median_rank": rank})
        for (data, model), (recall, rank) in _TEXT_TO_VIDEO.items()
    ),
    *(Reported("probe", data, "mean", model, {"top1": top1}) for (data, model), top1 in _LINEAR.items()),
    *(
        Reported("finetune", data, "", model, {"top1": one, "top5": five}, VATT_CODE)
        for (data, model), (one, five) in _TOP_1_AND_5.items()
    ),
    *(
        Reported("tagging", "AudioSet", "", model, {"map": precision, "auc": area, "d_prime": distance}, VATT_CODE)
        for model, (precision, area, distance) in _AUDIOSET.items()
    ),
]


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
    """What was evaluated, how, and what came out.

    Attributes:
        task: Its name.
        checkpoint: Folder of what was evaluated.
        data: Name of what it was evaluated on.
        protocol: How: numbers of windows, splits, the kind of probe ...
        counts: How many clips, and how many of them were skipped or missing.
        leakage: What is known of clips that were trained on.
        figures: The numbers, as the task arranges them; plain values.
        table: The same as a Markdown table.
        skipped: The clips that could not be read, and why.
    """

    task: str
    checkpoint: Path
    data: str
    protocol: dict[str, Any]
    counts: dict[str, int]
    leakage: Leakage
    figures: dict[str, Any]
    table: str
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """What it was evaluated on, and what was left out, in a line."""
        counts = ", ".join(f"{what}: {count}" for what, count in self.counts.items())
        return f"{self.task} on {self.data}; {counts}; {self.leakage.summary}."


def as_json(result: Result) -> str:
    """All of a result, and the figures that others report on the same data."""
    facts = asdict(result)
    facts["checkpoint"] = {"folder": str(result.checkpoint), "step": checkpoint.load_facts(result.checkpoint)["step"]}
    facts["reported"] = [row._asdict() for row in reported(result.task, result.data)]
    return json.dumps(facts, indent=1, ensure_ascii=False)


def write(result: Result, out: Path) -> None:
    """Write a result as JSON, and its table beside it, ending in .md."""
    write_atomically(out, as_json(result))
    write_atomically(out.with_suffix(".md"), f"{result.table}\n\n{result.summary}\n")


def reported(task: str, data: str) -> list[Reported]:
    """What others report of a task on a data set."""
    return [row for row in REPORTED if (row.task, row.data) == (task, data)]


def percent(share: float | None) -> str:
    """A share as per cent; "" for none."""
    return "" if share is None else f"{100 * share:.1f}"


def markdown(rows: Sequence[dict[str, str]]) -> str:
    """A Markdown table; its columns are the keys of the rows, the first two to the left, numbers to the right."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    rules = ["---" if place < 2 else "---:" for place in range(len(columns))]
    lines = [f"| {' | '.join(columns)} |", f"|{'|'.join(rules)}|"]
    return "\n".join(lines + [f"| {' | '.join(row.get(column, '') for column in columns)} |" for row in rows])
