"""HMDB51's layout: a folder of avi files per action, and three official splits, each with one list per action."""

import re
from pathlib import Path

from recipes.data.encoding import read_lines
from recipes.data.layouts.listed import Row, file_of, folder_of, present, whole

SPLITS = "testTrainMulti_7030_splits"
LIST = re.compile(r"(.+)_test_split(\d)\.txt")
PARTS = {"0": None, "1": "train", "2": "test"}


def read(root: Path) -> tuple[list[str], list[Row]]:
    """Reads a folder in HMDB51's layout; see `recipes.data.labels.Layout`.

    Args:
        root: the folder with `testTrainMulti_7030_splits`, and with the folders of the actions, in it or in a folder in
            it (`hmdb51_org`).
    Raises:
        FileNotFoundError: no list, or not one of the videos.
        ValueError: a line of another form; says which file and line.
    """
    splits = (folder_of(root, SPLITS) or root) / SPLITS
    lists = [(file, found) for file in sorted(splits.iterdir()) if (found := LIST.fullmatch(file.name))]
    names = sorted({found[1] for _, found in lists})
    rows: dict[str, Row] = {}
    for file, found in lists:
        action, split = found[1], found[2]
        for number, line in read_lines(file):
            if not line.strip():
                continue
            name, _, use = line.strip().rpartition(" ")
            if not name or use not in PARTS:
                raise ValueError(
                    f"{file}, line {number}: expected a file and 0 (not used), 1 (train) or 2 (test); "
                    f"found {line.strip()!r}"
                )
            row = rows.setdefault(f"{action}/{name}", _row(root, action, name))
            if part := PARTS[use]:
                row["parts"][split] = part
    if not rows:
        raise FileNotFoundError(f"{splits}: no list here; expected files like brush_hair_test_split1.txt")
    return names, present(root, rows, "its lists")


def _row(root: Path, action: str, name: str) -> Row:
    video = file_of(root, f"{action}/{name}")
    return {"id": f"{action}/{video.stem}", **whole(video), "labels": [action], "parts": {}}
