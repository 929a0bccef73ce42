"""Draws clips to label from a table of scores, which is read in pieces."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from recipes.data.index import ROWS_AT_ONCE
from recipes.figures.label.choice import Choice, name_of
from recipes.figures.label.keys import LabelKeys
from recipes.scoring import table
from recipes.scoring.measure import FIGURES

COLUMNS = ("id", "video", "narration", "caption", "start", "end")


def of_table(keys: LabelKeys, path: Path, index: Dataset | None, excluded: set[str]) -> tuple[list[Choice], str]:
    """Clips of a table of scores that could be read, of the rows of an index if there is one."""
    with table.opened(path, COLUMNS) as opened:
        schema = opened.schema_arrow
    groups = None if index is None else _groups(index)
    by = _figure(keys.by, schema, path) if keys.choose == "spread" else None
    places, values = _candidates(path, by, groups, excluded)
    rng = np.random.default_rng(keys.seed)
    drawn = rng.permutation(places if by is None else _spread(places, values, keys.count, rng))[: keys.count].tolist()
    rows = table.rows_at(path, COLUMNS, drawn)
    how = "at random" if by is None else f"spread over {by},"
    clips = [_scored(rows[place], groups or {}) for place in drawn]
    return clips, f"{how} from {len(places)} clips of {path}, seed {keys.seed}"


def _groups(index: Dataset) -> dict[str, str]:
    """The group of each row, by id; that of a row without one is its id."""
    pieces = index.select_columns(["id", "group"]).iter(ROWS_AT_ONCE)
    return {name: group or name for rows in pieces for name, group in zip(rows["id"], rows["group"], strict=True)}


def _figure(by: str | None, schema: pa.Schema, path: Path) -> str:
    """The column to spread over."""
    fields = [field for field in schema if field.name not in (*COLUMNS, "clip")]
    figures = [f.name for f in fields if pa.types.is_floating(f.type) or pa.types.is_integer(f.type)]
    chosen = next((name for name in FIGURES if name in figures), None) if by is None else by
    if chosen not in figures:
        has = f"it has {', '.join(figures)}" if figures else "it has none"
        raise ValueError(f"by={by or 'null'}: {path} has no such column of numbers; {has}")
    return chosen


def _candidates(
    path: Path, by: str | None, groups: dict[str, str] | None, excluded: set[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the clips to draw from, int64 (N,), and their figures (N,); without words only if all are."""

    def ours(row: str, narration: float) -> bool:
        return (groups is None or row in groups) and name_of(row, int(narration)) not in excluded

    places, values, spoken, first = [np.empty(0, np.int64)], [np.empty(0)], [np.empty(0, bool)], 0
    for piece in table.columns(path, ["id", "narration", "caption", "start", *filter(None, [by])]):
        figures = piece[by].astype(float) if by else np.zeros(len(piece["id"]))
        whole = np.isfinite([piece["start"].astype(float), piece["narration"].astype(float), figures]).all(0)
        chosen = np.array([i for i in np.flatnonzero(whole) if ours(piece["id"][i], piece["narration"][i])], np.int64)
        places.append(first + chosen)
        values.append(figures[chosen])
        spoken.append(piece["caption"][chosen].astype(bool))
        first += len(figures)
    with_text = np.concatenate(spoken)
    kept = with_text if with_text.any() else ~with_text
    return np.concatenate(places)[kept], np.concatenate(values)[kept]


def _spread(places: np.ndarray, values: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """One of each of ``count`` equal parts of places (N,), in the order of their values (N,)."""
    parts = np.array_split(places[np.argsort(values, kind="stable")], count)
    return np.array([rng.choice(part) for part in parts if len(part)], np.int64)


def _scored(row: dict[str, Any], groups: dict[str, str]) -> Choice:
    name, group = name_of(row["id"], row["narration"]), groups.get(row["id"], row["id"])
    return Choice(name, row["video"], group, row["caption"] or "", row["start"], row["end"], None)
