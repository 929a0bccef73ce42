"""The list of clips that could not be read."""

import json
import sys
from pathlib import Path

from tqdm import tqdm

from recipes.data.clips import Skipped


class SkippedClips:
    """Clips that could not be read, each listed once in skipped.jsonl."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "skipped.jsonl"
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []
        self.known = {json.loads(line)["id"] for line in lines}

    def record(self, clips: list[Skipped]) -> int:
        """Note the clips of a batch; returns how many there were."""
        for clip in clips:
            if clip.id not in self.known:
                self.known.add(clip.id)
                tqdm.write(f"skipped {clip.id}: {clip.reason}", file=sys.stderr)
                with self.file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"id": clip.id, "reason": clip.reason}, ensure_ascii=False) + "\n")
        return len(clips)
