"""What the layouts of labelled data sets share: finding what their lists name."""

import glob
import warnings
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def folder_of(root: Path, mark: str) -> Path | None:
    """The folder that holds `mark`: `root`, or one of those in it, as the archive was unpacked; None: there is none."""
    return next((folder for folder in (root, *sorted(root.glob("*/"))) if (folder / mark).exists()), None)


def file_of(root: Path, name: str) -> Path:
    """Where a clip is that lists call `Class/file`: in `root`, or in a folder in it; in `root`, where it is missing."""
    return next(
        (file for file in (root / name, *sorted(root.glob(f"*/{glob.escape(name)}"))) if file.is_file()), root / name
    )


def whole(video: Path) -> Row:
    """The row of an index for a file that is one clip, without text, and without an id."""
    return {"video": str(video.absolute()), "split": "", "start": None, "end": None, "narrations": []}


def present(root: Path, rows: dict[str, Row], what: str) -> list[Row]:
    """The rows whose file is there; one warning counts the others.

    Args:
        root: the data set.
        rows: by what a list calls them.
        what: the list, for people.
    Raises:
        FileNotFoundError: not one file is there.
    """
    there = [row for row in rows.values() if Path(row["video"]).is_file()]
    missing = [row for row in rows.values() if not Path(row["video"]).is_file()]
    if not there:
        example = f"; the first would be {missing[0]['video']}" if missing else ""
        raise FileNotFoundError(f"{root}: not one of the {len(rows)} files in {what} is here{example}")
    if missing:
        warnings.warn(f"{root}: {len(missing)} of {len(rows)} clips have no file; left out", stacklevel=2)
    return there
