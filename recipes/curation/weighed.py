"""The manifest to train on: the data with the weights of its pairs, what is trusted, and what is held out."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset

from recipes.curation.filters import Row, Trusted, write_row
from recipes.curation.judging import SPACES
from recipes.data import storage
from recipes.files import replacing


class Labels:
    """What somebody has said of clips of the data: each is known by its video and its text."""

    def __init__(self, trusted: Dataset) -> None:
        self.rows = {(storage.same(row["video"]), _text_of(row)): row for row in trusted}
        self.used: set[tuple[str, str]] = set()

    def of(self, row: Row, text: str) -> Row | None:
        """The trusted row of a clip; None: nobody has looked at it."""
        name = (storage.same(row["video"]), text)
        if name not in self.rows:
            return None
        self.used.add(name)
        return self.rows[name]

    def unused(self) -> Iterator[Row]:
        """Trusted rows that are none of the clips asked for so far."""
        return (row for name, row in self.rows.items() if name not in self.used)


@dataclass(frozen=True)
class Weights:
    """The weights of all clips of the data, by pair of modalities, (N,) each, and which could be read, bool (N,)."""

    by_space: dict[str, np.ndarray]
    readable: np.ndarray

    def rows(self, data: Dataset, labels: Labels) -> Iterator[tuple[int, Row]]:
        """The rows of the data that are worth anything, with their weights, and their positions.

        A label counts more than what filters say. Narrations that could not be read are left out.
        """
        first = 0
        for position, row in enumerate(data):
            clips = slice(first, first := first + max(len(row["narrations"]), 1))
            weighed = weigh_row(row, {s: self.by_space[s][clips] for s in SPACES}, self.readable[clips], labels)
            if weighed is not None:
                yield position, weighed


def weigh_row(row: Row, weights: dict[str, np.ndarray], readable: np.ndarray, labels: Labels) -> Row | None:
    """A row with its weights; None if nothing of it is worth anything. Its sound has the mean weight of its clips."""
    narrations, sounds = [], []
    texts = row["narrations"] or [None]
    for narration, text_weight, sound_weight, ok in zip(texts, weights["vt"], weights["va"], readable, strict=True):
        label = labels.of(row, "" if narration is None else narration["text"])
        if not ok:
            continue
        if label is not None:
            sound_weight = sound_weight if label["sound_weight"] is None else label["sound_weight"]
            text_weight = label["narrations"][0]["weight"] if label["narrations"] else text_weight
        sounds.append(float(sound_weight))
        if narration is not None:
            narrations.append(narration | {"weight": 1.0 if text_weight is None else round(float(text_weight), 4)})
    sound = round(float(np.mean(sounds)), 4) if sounds else 0.0
    if sound == 0 and all(narration["weight"] == 0 for narration in narrations):
        return None
    return row | {"narrations": narrations, "sound_weight": sound}


def write_weighed(out: Path, data: Dataset, weights: Weights, trusted: Trusted, test: Dataset) -> dict[str, int]:
    """Write the manifest to train on.

    Args:
        out: The manifest to write.
        data: Rows that were judged; their clips follow each other in the weights.
        weights: Of their pairs.
        trusted: The trusted clips: their labels count more, and those that are not of the data come after it.
        test: What is held out.

    Returns:
        Counts of rows: "videos" of the data, "kept" of them, "trusted" ones besides, and "held out".
    """
    labels, root = Labels(trusted.index), out.parent
    counts = {"videos": len(data), "kept": 0, "trusted": 0, "held out": len(test)}
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        for _, row in weights.rows(data, labels):
            counts["kept"] += 1
            write_row(file, row | {"split": "train"}, root)
        for row in labels.unused():
            counts["trusted"] += 1
            write_row(file, row | {"split": "train"}, root, "trusted/")
        for row in test:
            write_row(file, row | {"split": "test"}, root)
    return counts


def _text_of(row: Row) -> str:
    return row["narrations"][0]["text"] if row["narrations"] else ""
