"""The result of an evaluation: as JSON for programs, as a Markdown table for people."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from recipes.data.clips import Skipped
from recipes.training.checkpoint import write_atomically


@dataclass(frozen=True)
class Result:
    """What was evaluated, how, and what came out.

    Attributes:
        task: Its name.
        checkpoint: Folder of what was evaluated.
        data: What it was evaluated on, for people.
        protocol: How: numbers of windows, splits, the kind of probe ...
        counts: How many clips, and how many of them were skipped or missing.
        figures: The numbers, as the task arranges them; plain values.
        table: The same as a Markdown table.
        skipped: The clips that could not be read, and why.
    """

    task: str
    checkpoint: str
    data: str
    protocol: dict[str, Any]
    counts: dict[str, int]
    figures: dict[str, Any]
    table: str
    skipped: list[Skipped] = field(default_factory=list)


def write(result: Result, out: Path) -> None:
    """Write a result as JSON, and its table beside it, ending in .md."""
    write_atomically(out, json.dumps(asdict(result), indent=1, ensure_ascii=False))
    write_atomically(out.with_suffix(".md"), result.table + "\n")
