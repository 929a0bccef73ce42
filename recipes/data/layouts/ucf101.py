"""UCF101's layout: a folder of avi files per class, the official table of classes and three splits."""

import re
from collections.abc import Iterator
from pathlib import Path

from recipes.data.encoding import read_lines
from recipes.data.layouts.listed import Row, file_of, folder_of, present, whole

CLASSES = "classInd.txt"
LISTS = {"train": re.compile(r"trainlist(\d+)\.txt"), "test": re.compile(r"testlist(\d+)\.txt")}
GROUP = re.compile(r"(.+_g\d+)_c\d+\.")  # clips of a class and a group were cut from one video


def read(root: Path) -> tuple[list[str], list[Row]]:
    """Reads a folder in UCF101's layout; see `recipes.data.labels.Layout`.

    Args:
        root: the folder with `classInd.txt`, `trainlist0N.txt` and `testlist0N.txt`, in it or in a folder in it
            (`ucfTrainTestlist`), and the folders of the classes, in it or in a folder in it (`UCF-101`).
    Raises:
        FileNotFoundError: no list, or not one of the videos.
        ValueError: a line of another form; says which file and line.
    """
    lists = folder_of(root, CLASSES) or root
    names = [name for _, name in sorted(_classes(lists / CLASSES))]
    known = set(names)
    rows: dict[str, Row] = {}
    for part, form in LISTS.items():
        for file in sorted(lists.iterdir()):
            if found := form.fullmatch(file.name):
                for where, clip in _clips(file):
                    label = clip.partition("/")[0]
                    if label not in known:
                        raise ValueError(f"{where}: expected a class of {CLASSES} before the '/'; found {clip!r}")
                    row = rows.setdefault(clip, _row(root, clip, label))
                    row["parts"][str(int(found[1]))] = part
    if not rows:
        raise FileNotFoundError(f"{lists}: no trainlist01.txt and testlist01.txt here, beside {CLASSES}")
    return names, present(root, rows, "its lists")


def _row(root: Path, clip: str, label: str) -> Row:
    group = GROUP.match(clip)
    source = group[1] if group else ""
    return {
        "id": clip.rpartition(".")[0],
        **whole(file_of(root, clip)),
        "labels": [label],
        "parts": {},
        "source": source,
    }


def _classes(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in read_lines(path):
        if line.strip():
            fields = line.split()
            if len(fields) != 2 or not fields[0].isdecimal():
                raise ValueError(f"{path}, line {number}: expected a number and the name of a class; found {line!r}")
            yield int(fields[0]), fields[1]


def _clips(path: Path) -> Iterator[tuple[str, str]]:
    """Where a list names a clip, and the clip: `Class/file.avi`, in the lists of training with the class's number."""
    for number, line in read_lines(path):
        if line.strip():
            clip, _, label = line.strip().partition(" ")
            if clip.count("/") != 1 or not (label == "" or label.isdecimal()):
                raise ValueError(
                    f"{path}, line {number}: expected Class/file.avi, and after a space the number of the class where "
                    f"it is a list of training; found {line.strip()!r}"
                )
            yield f"{path}, line {number}", clip
