"""The held-out clips that a run evaluates on: drawn by a hash, from as many videos as possible."""

import hashlib
from collections.abc import Iterator
from itertools import chain, zip_longest
from typing import Any

import numpy as np
from datasets import Dataset
from tokenizers import Tokenizer

from recipes.data import storage
from recipes.data.index import ROWS_AT_ONCE, SCHEMA, mapped
from recipes.data.vocabulary import encode

Place = tuple[int, int]  # a row of an index, and the position of a narration there; -1: the clip is the row's


def limited(index: Dataset, tokenizer: Tokenizer, words: int, limit: int | None) -> Dataset:
    """The rows of an index, in its order, with only those narrations that are evaluated; each is one clip.

    Videos (or groups, if rows name one) come in the order of a hash of their ids, and each gives one clip before any
    gives a second. So the clips are the same on every machine and for every seed, and most stay when a data set grows.

    Args:
        words: of a narration that are looked at; one without known words is evaluated only if all are.
        limit: the most clips; None: the index as it is.
    """
    if limit is None:
        return index
    ids = (name for rows in index.select_columns("id").iter(ROWS_AT_ONCE) for name in rows["id"])
    order = np.argsort(np.fromiter(map(_hash, ids), np.uint64), kind="stable")
    clips: dict[str, list[Iterator[Place]]] = {}  # by video; lazy
    for row in order.tolist():
        name, spoken = unit(index[row]), _spoken(index, row, tokenizer, words)
        if name in clips:
            clips[name].append(spoken)
        elif (first := next(spoken, None)) is not None:
            clips[name] = [iter([first]), spoken]
        if len(clips) == limit:
            break
    turns = zip_longest(*map(chain.from_iterable, clips.values()))
    rounds = (place for places in turns for place in places if place is not None)
    chosen = sorted(place for place, _ in zip(rounds, range(limit), strict=False))
    return mapped(_rows(index, chosen or sorted((row, -1) for row in order[:limit].tolist())), SCHEMA)


def unit(row: dict[str, Any]) -> str:
    """What clips belong together: the group that a row names, or else its video."""
    return row.get("group") or storage.same(row["video"])


def _spoken(index: Dataset, number: int, tokenizer: Tokenizer, words: int) -> Iterator[Place]:
    """The narrations of a row that have words, in the order of a hash."""
    row = index[number]
    narrations = row["narrations"]
    order = sorted(range(len(narrations)), key=lambda n: _hash(f"{row['id']} {narrations[n]['start']}"))
    yield from ((number, n) for n in order if encode(tokenizer, narrations[n]["text"], words).any())


def _rows(index: Dataset, chosen: list[Place]) -> Iterator[dict[str, Any]]:
    places: dict[int, list[int]] = {}
    for row, narration in chosen:
        places.setdefault(row, []).append(narration)
    for number, positions in places.items():
        row = index[number]
        yield row | {"narrations": [row["narrations"][n] for n in positions if n >= 0]}


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha1(name.encode()).digest()[:8], "little")
