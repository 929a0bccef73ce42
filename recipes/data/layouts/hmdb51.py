"""HMDB51's layout: a folder of avi files per action, and three official splits, each with one list per action."""

import re
from pathlib import Path

from recipes.data.layouts.layout import Labels, Layout, Row, file_of, folder_of, listed_lines, present, row_of_file

SPLITS = "testTrainMulti_7030_splits"
LIST = re.compile(r"(.+)_test_split(\d)\.txt")
PARTS = {"0": None, "1": "train", "2": "test"}


def read_hmdb51(root: Path) -> Labels:
    """Reads `testTrainMulti_7030_splits` and the folders of the actions, in one in it (`hmdb51_org`) or not."""
    splits = (folder_of(root, SPLITS) or root) / SPLITS
    lists = [(file, match) for file in sorted(splits.iterdir()) if (match := LIST.fullmatch(file.name))]
    rows: dict[str, Row] = {}
    for file, match in lists:
        action, split = match[1], match[2]
        for where, line in listed_lines(file):
            name, _, use = line.rpartition(" ")
            if not name or use not in PARTS:
                raise ValueError(f"{where}: expected a file and 0 (not used), 1 (train) or 2 (test); found {line!r}")
            key = f"{action}/{name}"
            if key not in rows:
                video = file_of(root, key)
                rows[key] = row_of_file(video, id=f"{action}/{video.stem}", labels=[action], parts={})
            if part := PARTS[use]:
                rows[key]["parts"][split] = part
    if not rows:
        raise FileNotFoundError(f"{splits}: no list here; expected files like brush_hair_test_split1.txt")
    return sorted({match[1] for _, match in lists}), present(root, rows, "its lists")


LAYOUT = Layout("HMDB51", (SPLITS,), lambda root: read_hmdb51(root)[1], read_hmdb51, nested=True)
