"""What a layout is: marks by which a folder is recognised, and functions that read its rows. What layouts share."""

import csv
import glob
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from recipes.data.encoding import read_lines
from recipes.data.videos import VIDEOS, videos_below

Row = dict[str, Any]  # of an index; see `recipes.data.index.load_index`
Labels = tuple[list[str], list[Row]]


class Layout(NamedTuple):
    """How a data set lies on a disk.

    Both readers leave out what has no file, with one warning, and raise a FileNotFoundError if nothing has. A
    ValueError names the file and the line that are not as they should be. `read_labelled` returns the names of the
    classes, in order, and rows with `labels` (names), `parts` ({name of a split: "train" or "test"}) and, where it is
    known, `source`.
    """

    name: str
    marks: tuple[str, ...]  # files, folders or patterns; a folder with one of them has this layout
    read: Callable[[Path], Iterable[Row]] | None = None  # None: it is read with its labels alone
    read_labelled: Callable[[Path], Labels] | None = None  # None: it has no labels
    nested: bool = False  # whether the marks may lie one folder deeper, where an archive was unpacked

    def recognises(self, root: Path) -> bool:
        """Whether a folder has this layout."""
        if self.nested:
            return any(folder_of(root, mark) for mark in self.marks)
        return root.is_dir() and any(any(root.glob(mark)) for mark in self.marks)


def folder_of(root: Path, mark: str) -> Path | None:
    """The folder that holds `mark`: `root`, or one of those in it, as the archive was unpacked; None: there is none."""
    return next((folder for folder in (root, *sorted(root.glob("*/"))) if (folder / mark).exists()), None)


def file_of(root: Path, name: str) -> Path:
    """The file of a clip that lists call `Class/file`, in `root` or in a folder in it; if missing, a path in `root`."""
    candidates = (root / name, *sorted(root.glob(f"*/{glob.escape(name)}")))
    return next((file for file in candidates if file.is_file()), root / name)


def row_of_file(video: Path, **fields: Any) -> Row:
    """The row of a file that is one clip, without text."""
    return {"video": str(video.absolute()), "split": "", "start": None, "end": None, "narrations": [], **fields}


def present(root: Path, rows: dict[str, Row], what: str) -> list[Row]:
    """The rows whose file exists; `rows` are by what a list calls them, and `what` is the list, for people."""
    existing = [row for row in rows.values() if Path(row["video"]).is_file()]
    if not existing:
        example = next((f"; the first would be {row['video']}" for row in rows.values()), "")
        raise FileNotFoundError(f"{root}: not one of the {len(rows)} files in {what} is here{example}")
    warn_of_missing(root, len(rows) - len(existing), len(rows), "clips")
    return existing


def with_files(root: Path, rows: list[Row]) -> Iterator[Row]:
    """The rows whose `video`, the name of a file without its ending, is in or below `root`; with its path instead."""
    files = videos_below(root)
    missing = [row["video"] for row in rows if row["video"] not in files]
    if missing and len(missing) == len(rows):
        raise FileNotFoundError(
            f"{root}: not one of its {len(rows)} clips has a file; looked in it and below it for files like "
            f"{missing[0]}{VIDEOS[0]} (or {', '.join(VIDEOS[1:])})"
        )
    warn_of_missing(root, len(missing), len(rows), "clips")
    yield from (row | {"video": files[row["video"]]} for row in rows if row["video"] in files)


def warn_of_missing(root: Path, missing: int, total: int, what: str) -> None:
    """One warning counts what has no file."""
    if missing:
        warnings.warn(f"{root}: {missing} of {total} {what} have no file; left out", stacklevel=3)


def read_table(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """Reads a CSV file that must have some columns: (file and line, for people; fields), "" for an absent field."""
    table = csv.DictReader(text for _, text in read_lines(path))
    try:
        if missing := [name for name in columns if name not in (table.fieldnames or ())]:
            expected = f"expected the columns {', '.join(columns)}"
            raise ValueError(f"{path}, line 1: {expected}; there is no {', '.join(missing)}")
        for fields in table:
            yield f"{path}, line {table.line_num}", fields | {name: fields[name] or "" for name in columns}
    except csv.Error as error:
        raise ValueError(f"{path}, line {table.line_num + 1}: not CSV: {error}") from error


def listed_lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a list that are not blank: (file and line, for people; text)."""
    for number, line in read_lines(path):
        if line.strip():
            yield f"{path}, line {number}", line.strip()
