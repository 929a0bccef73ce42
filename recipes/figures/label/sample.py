"""Draws the clips to label."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from recipes.data.index import ROWS_AT_ONCE, load_index, narration_places
from recipes.figures.label.choice import Choice, name_of
from recipes.figures.label.keys import LabelKeys
from recipes.figures.label.scored import of_table
from recipes.files import jsonl, regular
from recipes.scoring.order import shuffled
from recipes.splits import trained_on


class Drawn(NamedTuple):
    """The clips of a page, in random order, and how they were chosen, for people."""

    clips: list[Choice]
    how: str


def draw(keys: LabelKeys) -> Drawn:
    """Draw clips at random, or spread over a figure; those without a text only if none has one.

    Raises:
        ValueError, OSError: Data, table or an excluded file cannot be read, or there is no clip to draw.
    """
    excluded = {row["id"] for path in keys.exclude for row in _labelled(path)}
    index = None if keys.data is None else load_index(keys.data, keys.split) if keys.split else trained_on(keys.data)
    if keys.scores is not None:
        clips, how = of_table(keys, keys.scores, index, excluded)
    else:
        clips, how = _of_index(keys, index, excluded)
    if not clips:
        among = f" among the rows of {keys.data}" if keys.scores and keys.data else ""
        left_out = f" beside the {len(excluded)} that exclude= names" if excluded else ""
        raise ValueError(f"{keys.scores or keys.data}: no clip to label{among}{left_out}")
    return Drawn(clips, how + (f"; {len(excluded)} labelled before are left out" if excluded else ""))


def _labelled(path: Path) -> list[dict[str, Any]]:
    return jsonl.read_rows(regular(path), id=str)


def _of_index(keys: LabelKeys, index: Dataset, excluded: set[str]) -> tuple[list[Choice], str]:
    """Clips of a data set in a random order that is computed: memory does not grow with it."""
    places, clips = narration_places(index), []
    pieces = places.select_columns("narration").with_format("numpy").iter(ROWS_AT_ONCE)
    spoken = any((piece["narration"] >= 0).any() for piece in pieces)
    for number in range(len(places)):
        [position] = shuffled(np.array([number]), len(places), keys.seed).tolist()
        place = places[position]
        if spoken and place["narration"] < 0:
            continue
        choice = _chosen(index[place["row"]], place["narration"])
        if choice.id not in excluded:
            clips.append(choice)
        if len(clips) == keys.count:
            break
    return clips, f"at random from the {len(places)} clips of {keys.data}, seed {keys.seed}"


def _chosen(row: dict[str, Any], narration: int) -> Choice:
    whole = {"start": 0.0, "end": math.inf, "text": ""}
    text = row["narrations"][narration] if narration >= 0 else whole
    group, part = row["group"] or row["id"], {"start": row["start"], "end": row["end"]}
    name = name_of(row["id"], narration)
    return Choice(name, row["video"], group, text["text"], text["start"], text["end"], part)
