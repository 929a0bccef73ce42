"""The manifest to train on: the data with the weights of its pairs, what is trusted, and what is held out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from recipes.curation.filters import Trusted, write_row
from recipes.curation.judging import SPACES
from recipes.data import storage
from recipes.files import replacing


def write_weighed(
    out: Path, data: Dataset, weights: dict[str, np.ndarray], readable: np.ndarray, trusted: Trusted, test: Dataset
) -> dict[str, int]:
    """Write the manifest to train on: the data with weights, what is trusted as it was labelled, and what is held out.

    Args:
        out: The manifest to write.
        data: Rows that were judged; their clips follow each other in the weights.
        weights: Of each pair, (N,).
        readable: Which clips could be read, bool (N,): the others are left out.
        trusted: The trusted clips; a pair of the data that is one of them has its weight.
        test: What is held out.

    Returns:
        Counts: "videos" of the data, "kept" of them, "trusted" and "held out" rows.
    """
    root = out.parent
    counts = {"videos": len(data), "kept": 0, "trusted": len(trusted.index), "held out": len(test)}
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        for _, row in weighed_rows(data, weights, readable, trusted):
            counts["kept"] += 1
            write_row(file, row | {"split": "train"}, root)
        for row in trusted.index:
            write_row(file, row | {"split": "train"}, root, "trusted/")
        for row in test:
            write_row(file, row | {"split": "test"}, root)
    return counts


def weighed_rows(
    data: Dataset, weights: dict[str, np.ndarray], readable: np.ndarray, trusted: Trusted
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of the data that are worth anything, with their weights, and their positions; see `write_weighed`."""
    labelled, first = {(storage.same(row["video"]), text_of(row)) for row in trusted.index}, 0
    for position, row in enumerate(data):
        clips = slice(first, first := first + max(len(row["narrations"]), 1))
        weighed = weigh_row(row, {space: weights[space][clips] for space in SPACES}, readable[clips], labelled)
        if weighed is not None:
            yield position, weighed


def weigh_row(
    row: dict[str, Any], weights: dict[str, np.ndarray], readable: np.ndarray, labelled: set[tuple[str, str]]
) -> dict[str, Any] | None:
    """A row with its weights; None if nothing of it is worth anything.

    The weight of its sound is the mean over its clips. What somebody has labelled is left to the labelled row.
    """
    if not readable.any():
        return None
    place = storage.same(row["video"])
    narrations = [
        narration | {"weight": round(float(weight), 4)}
        for narration, weight, ok in zip(row["narrations"], weights["vt"], readable, strict=False)
        if ok and (place, narration["text"]) not in labelled
    ]
    if row["narrations"] and not narrations:
        return None
    sound = round(float(weights["va"][readable].mean()), 4)
    if sound == 0 and all(narration["weight"] == 0 for narration in narrations):
        return None
    return row | {"narrations": narrations, "sound_weight": sound}


def text_of(row: dict[str, Any]) -> str:
    """The text of a trusted row; empty without one."""
    return row["narrations"][0]["text"] if row["narrations"] else ""
