"""Labelled data sets, whatever their layout: clips, their classes, and splits to train and test on."""

from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset

from recipes.data import manifest
from recipes.data.index import index_of
from recipes.data.layouts.labelled_manifest import read_labelled_manifest
from recipes.data.layouts.layout import Labels
from recipes.data.layouts.table import LAYOUTS

TRAIN, TEST = "train", "test"  # the two parts of a split


class Split(NamedTuple):
    """Row numbers of an index to train on and to test on; other rows are not used."""

    name: str
    train: list[int]
    test: list[int]


class Labelled(NamedTuple):
    """A labelled data set."""

    index: Dataset
    labels: list[list[int]]  # class numbers of each row, mostly one
    names: list[str]  # of the classes, by number
    splits: list[Split]  # the official ones, in order
    sources: list[str]  # what each row was cut from: clips of one source are alike; "": the data set does not say it
    dataset: str  # its name; "": it is a manifest


def load_labelled(path: str | Path) -> Labelled:
    """Reads a folder in a layout with labels, or a labelled manifest.

    Raises:
        FileNotFoundError: nothing at `path`, or none of the clips it names.
        ValueError: no layout that is known, a wrong row or line, an id that occurs twice, or a split without a clip.
    """
    dataset, (names, rows) = _read_labels(path)
    number = {name: i for i, name in enumerate(names)}
    labels = [[number[name] for name in row["labels"]] for row in rows]
    sources = [row.get("source", "") for row in rows]
    return Labelled(index_of(path, rows), labels, names, _splits(path, rows), sources, dataset)


def _read_labels(path: str | Path) -> tuple[str, Labels]:
    """The name of the data set, and what its reader returns."""
    if manifest.ending(path) in manifest.SUFFIXES:
        return "", read_labelled_manifest(path)
    root = Path(path).expanduser()
    labelled = [layout for layout in LAYOUTS if layout.read_labelled]
    for layout in labelled:
        if layout.recognises(root):
            return layout.name, layout.read_labelled(root)
    marks = ", ".join(mark for layout in labelled for mark in layout.marks)
    expected = f"expected a folder with one of {marks} in it, or a file ending in {', '.join(manifest.SUFFIXES)}"
    if not root.exists():
        raise FileNotFoundError(f"{path}: there is nothing here; {expected}")
    raise ValueError(f"{path}: not a labelled data set that is known; {expected}")


def _splits(path: str | Path, rows: list[dict[str, Any]]) -> list[Split]:
    names = dict.fromkeys(name for row in rows for name in row["parts"])
    parts = {name: [row["parts"].get(name) for row in rows] for name in names}
    splits = [
        Split(name, *([i for i, part in enumerate(own) if part == wanted] for wanted in (TRAIN, TEST)))
        for name, own in sorted(parts.items(), key=lambda item: (len(item[0]), item[0]))  # 2 before 10
    ]
    for split in splits:
        if not (split.train and split.test):
            raise ValueError(
                f"{path}, split {split.name}: {len(split.train)} clip(s) to train on and {len(split.test)} to test on; "
                "at least one of each is needed"
            )
    return splits
