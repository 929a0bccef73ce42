"""AudioSet's layout: the official tables of ten-second segments, their labels, and those videos that one has."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from recipes.data.encoding import read_lines
from recipes.data.layouts.layout import Labels, Layout, Row, folder_of, warn_of_missing
from recipes.data.videos import VIDEOS, videos_by_name

TABLES = {
    "balanced_train_segments.csv": "train",
    "unbalanced_train_segments.csv": "train",
    "eval_segments.csv": "test",
}
CLASSES = "class_labels_indices.csv"
SPLIT = "eval"
SOUNDS = (".wav", ".flac", ".m4a", ".ogg")  # of which there are labels, but nothing to pre-train on


class Segment(NamedTuple):
    """A part of a video on YouTube, in seconds, its labels, and its place in the table, for people."""

    video: str
    start: float
    end: float
    labels: list[str]
    where: str


def read_audioset(root: Path) -> Iterator[Row]:
    """Reads the tables of segments; the `id` of a row is the YTID, and there are no narrations.

    A file is the whole video, `<YTID>.<mp4|webm|mkv>`, or the segment, `<YTID>_<start>` or `<YTID>_<start>_<end>`,
    in whole seconds, plain or of six digits, or in milliseconds. Where there are both, the short file is read.
    """
    return (row for row, _ in _rows_and_segments(root, videos_by_name(root)))


def read_labelled_audioset(root: Path) -> Labels:
    """Reads the same folder, or the one around it, with the table of classes; a segment may be a file of sound."""
    root = folder_of(root, CLASSES) or root
    names = _classes(root / CLASSES)
    rows = []
    for row, segment in _rows_and_segments(root, videos_by_name(root, SOUNDS) | videos_by_name(root)):
        if unknown := [label for label in segment.labels if label not in names]:
            raise ValueError(f"{segment.where}: the label {unknown[0]} is not in {root / CLASSES}")
        part = "test" if row["split"] == "test" else "train"
        labels = [names[label] for label in segment.labels]
        rows.append(row | {"labels": labels, "parts": {SPLIT: part}, "source": segment.video})
    return list(names.values()), rows


def _rows_and_segments(root: Path, files: dict[str, str]) -> Iterator[tuple[Row, Segment]]:
    """The rows of those segments that have a file."""
    total = missing = 0
    for name, split in TABLES.items():
        for segment in _segments(root / name) if (root / name).is_file() else ():
            total += 1
            cut = next((files[stem] for stem in _names_of_cut(segment) if stem in files), None)
            if cut is None and segment.video not in files:
                missing += 1
                continue
            part = {"start": None, "end": None} if cut else {"start": segment.start, "end": segment.end}
            video = cut or files[segment.video]
            yield {"id": segment.video, "video": video, "split": split, **part, "narrations": []}, segment
    if total and missing == total:
        raise FileNotFoundError(
            f"{root}: not one of the {total} segments in its tables is here; looked for files like "
            f"{segment.video}{VIDEOS[0]} or {segment.video}_{segment.start:.0f}{VIDEOS[0]} "
            f"(or {', '.join(VIDEOS[1:])}) in {root / 'videos'} and {root}"
        )
    warn_of_missing(root, missing, total, "segments")


def _segments(path: Path) -> Iterator[Segment]:
    lines = (text for _, text in read_lines(path))
    for number, fields in enumerate(csv.reader(lines, skipinitialspace=True), 1):
        if not fields or fields[0].startswith("#"):
            continue
        where = f"{path}, line {number}"
        try:
            video, start, end, labels = fields
            segment = Segment(video, float(start), float(end), [part.strip() for part in labels.split(",")], where)
            if not (video and 0 <= segment.start < segment.end):
                raise ValueError
        except ValueError as error:
            raise ValueError(
                f'{where}: expected YTID, start_seconds, end_seconds, "labels" (labels in quotes, '
                f"start before end); found {fields!r:.80}"
            ) from error
        yield segment


def _classes(path: Path) -> dict[str, str]:
    """The display name of each class by its machine id, in the order of the table."""
    names: dict[str, str] = {}
    for number, fields in enumerate(csv.reader(text for _, text in read_lines(path)), 1):
        if number == 1 or not fields:
            continue
        if len(fields) != 3 or fields[0] != str(len(names)):
            raise ValueError(f"{path}, line {number}: expected {len(names)},mid,display_name; found {fields!r:.80}")
        names[fields[1]] = fields[2]
    return names


def _names_of_cut(segment: Segment) -> list[str]:
    """How downloaders name the file of a segment, without its ending."""
    forms = [[f"{time:.0f}", f"{time:06.0f}", f"{1000 * time:.0f}"] for time in (segment.start, segment.end)]
    starts = [f"{segment.video}_{start}" for start in forms[0]]
    return starts + [f"{start}_{end}" for start, end in zip(starts, forms[1], strict=True)]


LAYOUT = Layout("AudioSet", tuple(TABLES), read_audioset)
LABELLED = Layout("AudioSet", (CLASSES,), read_labelled=read_labelled_audioset, nested=True)
