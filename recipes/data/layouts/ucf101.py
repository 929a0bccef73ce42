"""UCF101's layout: a folder of avi files per class, the official table of classes and three splits."""

import re
from pathlib import Path

from recipes.data.layouts.layout import Labels, Layout, Row, file_of, folder_of, listed_lines, present, row_of_file

CLASSES = "classInd.txt"
LISTS = re.compile(r"(train|test)list(\d+)\.txt")
GROUP = re.compile(r"(.+_g\d+)_c\d+\.")  # clips of a class and a group were cut from one video


def read_ucf101(root: Path) -> Labels:
    """Reads the table of classes, the lists and the folders of the classes; each may lie in a folder of its own."""
    lists = folder_of(root, CLASSES) or root
    names = _classes(lists / CLASSES)
    rows: dict[str, Row] = {}
    for file in sorted(lists.iterdir(), key=lambda file: (file.name.startswith("test"), file.name)):
        if not (match := LISTS.fullmatch(file.name)):
            continue
        for where, line in listed_lines(file):
            clip = _listed_clip(where, line)
            label = clip.partition("/")[0]
            if label not in names:
                raise ValueError(f"{where}: expected a class of {CLASSES} before the '/'; found {clip!r}")
            rows.setdefault(clip, _row(root, clip, label))["parts"][str(int(match[2]))] = match[1]
    if not rows:
        raise FileNotFoundError(f"{lists}: no trainlist01.txt and testlist01.txt here, beside {CLASSES}")
    return names, present(root, rows, "its lists")


def _row(root: Path, clip: str, label: str) -> Row:
    group = GROUP.match(clip)
    about = {"id": clip.rpartition(".")[0], "labels": [label], "parts": {}, "source": group[1] if group else ""}
    return row_of_file(file_of(root, clip), **about)


def _classes(path: Path) -> list[str]:
    """The names of the classes, in the order of their numbers."""
    names = []
    for where, line in listed_lines(path):
        fields = line.split()
        if len(fields) != 2 or not fields[0].isdecimal():
            raise ValueError(f"{where}: expected a number and the name of a class; found {line!r}")
        names.append((int(fields[0]), fields[1]))
    return [name for _, name in sorted(names)]


def _listed_clip(where: str, line: str) -> str:
    """`Class/file.avi`, after which the lists of training have the number of the class."""
    clip, _, label = line.partition(" ")
    if clip.count("/") != 1 or not (label == "" or label.isdecimal()):
        raise ValueError(
            f"{where}: expected Class/file.avi, and after a space the number of the class where "
            f"it is a list of training; found {line!r}"
        )
    return clip


LAYOUT = Layout("UCF101", (CLASSES,), lambda root: read_ucf101(root)[1], read_ucf101, nested=True)
