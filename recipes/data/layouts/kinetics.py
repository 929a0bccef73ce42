"""Kinetics' layout: the official tables of clips on YouTube, and ten-second files that are named by video and time."""

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from recipes.data.encoding import read_lines
from recipes.data.layouts.listed import Row, folder_of, present, whole
from recipes.data.videos import VIDEOS

TABLE = "train.csv"  # by which the layout is known
TABLES = {TABLE: "train", "val.csv": "test", "validate.csv": "test"}
SPLIT = "val"
COLUMNS = ("label", "youtube_id", "time_start", "time_end")


def read(root: Path) -> tuple[list[str], list[Row]]:
    """Reads a folder in Kinetics' layout; see `recipes.data.labels.Layout`.

    A clip is a file `<youtube_id>_<start>_<end>` (times of six digits), wherever it is below `root`: in `train/` and
    `val/`, in folders of the classes, in both or in neither. The only split trains on `train.csv` and tests on
    `val.csv`, which older releases call `validate.csv`.

    Args:
        root: the folder with the tables, in it or in a folder in it.
    Raises:
        FileNotFoundError: not one of the videos.
        ValueError: a table of another form; says which file and line.
    """
    tables = folder_of(root, TABLE)
    files = _files(root)
    rows: dict[str, Row] = {}
    for table, part in TABLES.items():
        for where, name, label in _clips(tables / table) if (tables / table).is_file() else ():
            if name in rows:
                raise ValueError(f"{where}: the clip {name} was in the tables before")
            clip = whole(files.get(name, root / f"{name}{VIDEOS[0]}"))
            rows[name] = {"id": name, **clip, "labels": [label], "parts": {SPLIT: part}, "source": name[:-14]}
    return sorted({label for row in rows.values() for label in row["labels"]}), present(root, rows, "its tables")


def _files(root: Path) -> dict[str, Path]:
    """Every video below a folder, by its name without the ending."""
    found = {}
    for folder, _, names in os.walk(root):
        for stem, ending in map(os.path.splitext, names):
            if ending.lower() in VIDEOS:
                found[stem] = Path(folder, stem + ending)
    return found


def _clips(path: Path) -> Iterator[tuple[str, str, str]]:
    """Where a table names a clip, the name of its file, and its label."""
    table = csv.DictReader(text for _, text in read_lines(path))
    if missing := [name for name in COLUMNS if name not in (table.fieldnames or ())]:
        raise ValueError(f"{path}, line 1: expected the columns {', '.join(COLUMNS)}; there is no {', '.join(missing)}")
    for fields in table:
        label, video, *times = (fields[name] or "" for name in COLUMNS)
        where = f"{path}, line {table.line_num}"
        try:
            start, end = (int(float(time)) for time in times)
            if not (label and video and 0 <= start < end):
                raise ValueError
        except ValueError:
            raise ValueError(
                f"{where}: expected a label, an id, and its start and end in seconds; found {list(fields.values())!r}"
            ) from None
        yield where, f"{video}_{start:06}_{end:06}", label
