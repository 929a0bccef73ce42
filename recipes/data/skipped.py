"""Clips that could not be read: what takes their place in a batch, and the list of them in a folder."""

from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from recipes.files import jsonl, write_atomically
from recipes.progress import STDERR

SKIPPED = "skipped.jsonl"  # in a run's folder


@dataclass(frozen=True)
class Skipped:
    """A clip that could not be read, and why."""

    id: str
    reason: str


class SkippedClips:
    """Clips that could not be read, each listed once in skipped.jsonl."""

    def __init__(self, folder: Path) -> None:
        """Continues the list in a folder; a last line that a crash cut off is dropped."""
        self.file = folder / SKIPPED
        self.rows = jsonl.Rows(self.file)
        rows = jsonl.read_rows(self.file, id=str)
        if rows:
            write_atomically(self.file, jsonl.as_text(rows))
        self.known = {row["id"] for row in rows}

    def record(self, clips: list[Skipped]) -> int:
        """Lists the clips of a batch; returns how many there are."""
        for clip in clips:
            if clip.id not in self.known:
                self.known.add(clip.id)
                tqdm.write(f"skipped {clip.id}: {clip.reason}", file=STDERR)
                self.rows.add(asdict(clip))
        return len(clips)
