"""The truth of a corpus of this project: JSON lines, the narrations of each video in their order."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from recipes.files import jsonl
from recipes.scoring.truth.fact import Fact, Format, object_in


def read_corpus(path: Path) -> Iterator[Fact]:
    """Read `video_id`, `text`, `aligned` and, where a line has it, `sound_aligned`."""
    narrations: Counter[str] = Counter()
    for line in jsonl.read_rows(path, video_id=str, text=str, aligned=bool):
        video, text, sound = line["video_id"], line["text"], line.get("sound_aligned")
        position = narrations[video]
        narrations[video] += 1
        yield Fact("video-text", video, line["aligned"], position, text)
        if isinstance(sound, bool):
            yield Fact("video-audio", video, sound, position, text)
        elif sound is not None:
            raise ValueError(f"{path}: expected sound_aligned of {video} to be true or false; found {sound!r:.40}")


FORMAT = Format(
    "truth.jsonl of a corpus",
    "JSON lines with video_id, text and aligned",
    lambda line: "video_id" in object_in(line),
    read_corpus,
)
