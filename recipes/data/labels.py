"""Labelled data sets, whatever their layout: clips, their classes, and what is trained on and what is tested on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset

from recipes.data import manifest
from recipes.data.index import index_of
from recipes.data.layouts import audioset, esc50, hmdb51, kinetics, labelled_manifest, ucf101
from recipes.data.layouts.listed import folder_of

TRAIN, TEST = "train", "test"  # the two parts of a split
Read = tuple[list[str], list[dict[str, Any]]]


class Split(NamedTuple):
    """One way to divide a data set: row numbers of its index."""

    name: str
    train: list[int]
    test: list[int]


class Labelled(NamedTuple):
    """A labelled data set.

    Attributes:
        index: its clips, as from `load_index`.
        labels: class numbers of each row, mostly one.
        names: of the classes, by number.
        splits: the official ones, in order; what is neither in train nor in test is not used in that split.
        sources: what each row was cut from, where the data set says so, else "": such clips are alike.
        dataset: the name of the data set, "" of a manifest.
    """

    index: Dataset
    labels: list[list[int]]
    names: list[str]
    splits: list[Split]
    sources: list[str]
    dataset: str


class Layout(NamedTuple):
    """A layout: the data set that has it, the file or folder by which it is known, and its reader.

    A reader returns the names of the classes, in order, and rows: those of an index, with `labels` (names), `parts`
    ({name of a split: "train" or "test"}) and, where it is known, `source`.
    """

    dataset: str
    mark: str
    read: Callable[[Path], Read]


LAYOUTS = (
    Layout("UCF101", ucf101.CLASSES, ucf101.read),
    Layout("HMDB51", hmdb51.SPLITS, hmdb51.read),
    Layout("ESC-50", esc50.TABLE, esc50.read),
    Layout("AudioSet", audioset.CLASSES, audioset.read_labelled),
    Layout("Kinetics", kinetics.TABLE, kinetics.read),
)


def load_labelled(path: str | Path) -> Labelled:
    """Reads a labelled data set.

    Args:
        path: a folder in the layout of UCF101, HMDB51, ESC-50, AudioSet or Kinetics, or a labelled manifest (.jsonl,
            .csv, .parquet).
    Returns:
        Its clips, labels and splits.
    Raises:
        FileNotFoundError: nothing at `path`, or none of the clips it names.
        ValueError: no layout that is known, a row or line that is not right (says file and line), an id that occurs
            twice, or a split without a clip to train on or to test on.
    """
    dataset, (names, rows) = _read(path)
    number = {name: i for i, name in enumerate(names)}
    labels = [[number[name] for name in row["labels"]] for row in rows]
    sources = [row.get("source", "") for row in rows]
    return Labelled(index_of(path, rows), labels, names, _splits(path, rows), sources, dataset)


def _read(path: str | Path) -> tuple[str, Read]:
    if manifest.ending(path) in manifest.SUFFIXES:
        return "", labelled_manifest.read(path)
    root = Path(path).expanduser()
    for layout in LAYOUTS:
        if folder_of(root, layout.mark):
            return layout.dataset, layout.read(root)
    marks = ", ".join(layout.mark for layout in LAYOUTS)
    looked_for = f"a folder with one of {marks} in it, or a file ending in {', '.join(manifest.SUFFIXES)}"
    if not root.exists():
        raise FileNotFoundError(f"{path}: there is nothing here; expected {looked_for}")
    raise ValueError(f"{path}: not a labelled data set that is known; expected {looked_for}")


def _splits(path: str | Path, rows: list[dict[str, Any]]) -> list[Split]:
    names = dict.fromkeys(name for row in rows for name in row["parts"])
    parts = {name: [row["parts"].get(name) for row in rows] for name in names}
    splits = [
        Split(name, *([i for i, part in enumerate(of) if part == wanted] for wanted in (TRAIN, TEST)))
        for name, of in sorted(parts.items(), key=lambda item: (len(item[0]), item[0]))  # 2 before 10
    ]
    for split in splits:
        if not (split.train and split.test):
            raise ValueError(
                f"{path}, split {split.name}: {len(split.train)} clip(s) to train on and {len(split.test)} to test on; "
                "at least one of each is needed"
            )
    return splits
