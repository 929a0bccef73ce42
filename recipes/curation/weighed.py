"""The manifest to train on: the data with the weights of its pairs, what is trusted, and what is held out."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset

from recipes.curation.filters import Row, group_of, write_row
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

    def clips(self, data: Dataset, labels: Labels, seconds: float) -> Iterator[tuple[int, Row]]:
        """The clips of the data that are worth anything, each as a row with its weights, and the row that it is of.

        A label counts more than what filters say. A clip is its narration's part of the video, of so many seconds or
        more: what is judged is what is trained on. A video without narrations is one clip.
        """
        clip = 0
        for position, row in enumerate(data):
            for number, narration in enumerate(row["narrations"] or [None]):
                weights = {space: float(self.by_space[space][clip]) for space in SPACES}
                readable, clip = self.readable[clip], clip + 1
                label = labels.of(row, "" if narration is None else narration["text"])
                weights |= {} if label is None else weights_of(label)
                if readable and any(weights.values()):
                    yield position, clip_row(row, number, narration, weights, seconds)


def weights_of(label: Row) -> dict[str, float]:
    """The weights that a label gives the pairs of a clip."""
    texts = {"vt": label["narrations"][0]["weight"]} if label["narrations"] else {}
    return {space: weight for space, weight in ({"va": label["sound_weight"]} | texts).items() if weight is not None}


def clip_row(row: Row, number: int, narration: Row | None, weights: dict[str, float], seconds: float) -> Row:
    """A clip as a row: the part of the video that its narration is of, and no less than so many seconds."""
    weighed = row | {"group": group_of(row), "sound_weight": round(weights["va"], 4)}
    if narration is None:
        return weighed
    text = narration | {"weight": round(weights["vt"], 4)}
    if math.isinf(narration["end"]):
        return weighed | {"narrations": [text]}
    half = max(narration["end"] - narration["start"], seconds) / 2
    start = max((narration["start"] + narration["end"]) / 2 - half, row["start"] or 0.0)
    part = {"start": round(start, 3), "end": round(start + 2 * half, 3)}
    return weighed | part | {"id": f"{row['id']}#{number}", "narrations": [text]}


def write_weighed(
    out: Path, data: Dataset, weights: Weights, trusted: Dataset, test: Dataset, seconds: float
) -> dict[str, int]:
    """Write the manifest to train on.

    Args:
        out: The manifest to write.
        data: Rows that were judged; their clips follow each other in the weights.
        weights: Of their pairs.
        trusted: The trusted clips: their labels count more, and those that are not of the data come after it.
        test: What is held out.
        seconds: The length of a window: no clip is shorter.

    Returns:
        Counts of rows: "clips" of the data that are kept, "trusted" ones besides, and "held out".
    """
    labels, root = Labels(trusted), out.parent
    counts = {"clips": 0, "trusted": 0, "held out": len(test)}
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        for _, row in weights.clips(data, labels, seconds):
            counts["clips"] += 1
            write_row(file, row | {"split": "train"}, root)
        for row in labels.unused():
            counts["trusted"] += 1
            write_row(file, row | {"split": "train"}, root, "trusted/")
        for row in test:
            write_row(file, row | {"split": "test"}, root)
    return counts


def _text_of(row: Row) -> str:
    return row["narrations"][0]["text"] if row["narrations"] else ""
