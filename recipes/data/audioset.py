"""AudioSet's layout: the official tables of ten-second segments, and those videos that one has. It has no text."""

import csv
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from recipes.data.encoding import read_lines
from recipes.data.videos import VIDEOS, videos_by_name

TABLES = {
    "balanced_train_segments.csv": "train",
    "unbalanced_train_segments.csv": "train",
    "eval_segments.csv": "test",
}


class Segment(NamedTuple):
    """A part of a video on YouTube, in seconds."""

    video: str
    start: float
    end: float


def read(root: Path) -> Iterator[dict[str, Any]]:
    """Reads the index of a folder in AudioSet's layout.

    A video, in `videos/` or in the folder itself, is the whole one, `<YTID>.<mp4|webm|mkv>`, of which the segment is a
    part, or that part alone, cut out beforehand, whose name says where it begins: `<YTID>_<start>` or
    `<YTID>_<start>_<end>`, in whole seconds, plain or of six digits, or in milliseconds. Where there are both, the
    short file is read. Segments without a file are left out, with one warning.

    Args:
        root: the folder with one or more of `balanced_train_segments.csv`, `unbalanced_train_segments.csv` (split
            "train") and `eval_segments.csv` (split "test").
    Returns:
        Rows of `id` (the YTID), `video`, `split`, `start`, `end`, and no `narrations`, in the order of the tables.
    Raises:
        FileNotFoundError: not one of the videos.
        ValueError: a table of another form; says which file and line.
    """
    files = videos_by_name(root)
    listed = missing = 0
    for name, split in TABLES.items():
        for segment in _segments(root / name) if (root / name).is_file() else ():
            listed += 1
            cut = next((files[stem] for stem in _names_of_cut(segment) if stem in files), None)
            if cut is None and segment.video not in files:
                missing += 1
                continue
            part = {"start": None, "end": None} if cut else {"start": segment.start, "end": segment.end}
            yield {"id": segment.video, "video": cut or files[segment.video], "split": split, **part, "narrations": []}
    if listed and missing == listed:
        raise FileNotFoundError(
            f"{root}: not one of the {listed} segments in its tables is here; looked for files like "
            f"{segment.video}{VIDEOS[0]} or {segment.video}_{segment.start:.0f}{VIDEOS[0]} "
            f"(or {', '.join(VIDEOS[1:])}) in {root / 'videos'} and {root}"
        )
    if missing:
        warnings.warn(f"{root}: {missing} of {listed} segments have no file; left out", stacklevel=2)


def _segments(path: Path) -> Iterator[Segment]:
    lines = (text for _, text in read_lines(path))
    for number, fields in enumerate(csv.reader(lines, skipinitialspace=True), 1):
        if not fields or fields[0].startswith("#"):
            continue
        try:
            video, start, end, _ = fields
            segment = Segment(video, float(start), float(end))
            if not (video and 0 <= segment.start < segment.end):
                raise ValueError
        except ValueError as error:
            raise ValueError(
                f'{path}, line {number}: expected YTID, start_seconds, end_seconds, "labels" (labels in quotes, '
                f"start before end); found {fields!r:.80}"
            ) from error
        yield segment


def _names_of_cut(segment: Segment) -> list[str]:
    """How downloaders name the file of a segment, without its ending."""
    forms = [[f"{time:.0f}", f"{time:06.0f}", f"{1000 * time:.0f}"] for time in (segment.start, segment.end)]
    starts = [f"{segment.video}_{start}" for start in forms[0]]
    return starts + [f"{start}_{end}" for start, end in zip(starts, forms[1], strict=True)]
