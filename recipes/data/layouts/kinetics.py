"""Kinetics' layout: the official tables of clips on YouTube, and ten-second files that are named by video and time."""

from collections.abc import Iterator
from pathlib import Path

from recipes.data.layouts.layout import Labels, Layout, Row, folder_of, present, read_table, row_of_file
from recipes.data.videos import VIDEOS, videos_below

TABLE = "train.csv"  # by which the layout is known
TABLES = {TABLE: "train", "val.csv": "test", "validate.csv": "test"}
SPLIT = "val"
COLUMNS = ("label", "youtube_id", "time_start", "time_end")


def read_kinetics(root: Path) -> Labels:
    """Reads the tables, and the clips `<youtube_id>_<start>_<end>` (times of six digits) anywhere below `root`."""
    tables = folder_of(root, TABLE) or root
    files = videos_below(root)
    rows: dict[str, Row] = {}
    for table, part in TABLES.items():
        for where, name, label in _clips(tables / table) if (tables / table).is_file() else ():
            if name in rows:
                raise ValueError(f"{where}: the clip {name} was in the tables before")
            about = {"id": name, "labels": [label], "parts": {SPLIT: part}, "source": name[:-14]}
            rows[name] = row_of_file(Path(files.get(name, root / f"{name}{VIDEOS[0]}")), **about)
    return sorted({label for row in rows.values() for label in row["labels"]}), present(root, rows, "its tables")


def _clips(path: Path) -> Iterator[tuple[str, str, str]]:
    """Where a table names a clip, the name of its file, and its label."""
    for where, fields in read_table(path, COLUMNS):
        label, video, *times = (fields[name] for name in COLUMNS)
        try:
            start, end = (int(float(time)) for time in times)
            if not (label and video and 0 <= start < end):
                raise ValueError
        except (ValueError, OverflowError):
            raise ValueError(
                f"{where}: expected a label, an id, and its start and end in seconds; found {list(fields.values())!r}"
            ) from None
        yield where, f"{video}_{start:06}_{end:06}", label


LAYOUT = Layout("Kinetics", (TABLE,), read_labelled=read_kinetics, nested=True)
