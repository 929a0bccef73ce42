"""Draws the clips of a gallery from a table of scores, which is streamed: millions of rows fit."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recipes.scoring.table import facts_of, opened

COLUMNS = ("clip", "id", "video", "caption", "start", "end", "cosine")
ROWS_AT_ONCE = 65_536
BINS = 64  # of the histogram of cosines


@dataclass(frozen=True)
class Row:
    """One scored clip: the window [start, end) of a video, seconds, its caption, and its cosine."""

    clip: int
    id: str
    video: str
    caption: str
    start: float
    end: float
    cosine: float


@dataclass(frozen=True)
class Group:
    """Clips drawn, in this order, from one end of the distribution: `size` clips, up to the cosine `cut`."""

    rows: list[Row]
    size: int
    cut: float


@dataclass(frozen=True)
class Sample:
    """What a gallery shows of a table.

    Attributes:
        top, bottom: The two groups.
        references: Clips drawn from all that have a cosine, as many as were asked for or as there are.
        scored: Rows of the table.
        defined: Those with a cosine.
        histogram: Counts of the cosines in BINS equal bins of [-1, 1].
        metadata: How the table was made, as `recipes.score` wrote it.
    """

    top: Group
    bottom: Group
    references: list[Row]
    scored: int
    defined: int
    histogram: list[int]
    metadata: dict[str, Any]


def draw(path: Path, share: float, count: int, seed: int, references: int) -> Sample:
    """Draw clips from both ends of the distribution of cosines, and references from all of it.

    The groups are the `share` of clips with the highest and with the lowest cosines, at least one clip each. Clips
    without a cosine (no sound, no text, unreadable) are in neither.

    Args:
        path: Table of scores, Parquet.
        share: Of the clips with a cosine that a group has, in (0, 0.5].
        count: Clips to draw from each group; a smaller group is taken whole.
        seed: Of the draws.
        references: Clips to draw from all that have a cosine.

    Returns:
        The sample; each list is in random order.

    Raises:
        OSError, ValueError: The table cannot be read, lacks a column, or has fewer than two clips with a cosine.
    """
    if not 0 < share <= 0.5:
        raise ValueError(f"expected a share in (0, 0.5], got {share:g}")
    if count < 1:
        raise ValueError(f"expected a count of at least 1, got {count}")
    metadata = facts_of(path, COLUMNS)
    with opened(path, COLUMNS) as table:
        cosines = np.concatenate([_floats(batch["cosine"]) for batch in _batches(table, ["cosine"])] or [np.empty(0)])
        defined = np.flatnonzero(np.isfinite(cosines))
        if len(defined) < 2:
            raise ValueError(
                f"{path}: {len(defined)} of {len(cosines)} clips have a cosine; a gallery needs at least two that do"
            )
        order = defined[np.argsort(cosines[defined], kind="stable")]
        size = max(1, int(share * len(order)))
        rng = np.random.default_rng(seed)
        top, bottom = (rng.permutation(end)[:count] for end in (order[-size:], order[:size]))
        others = rng.permutation(defined)[:references]
        rows = _rows(table, {*top.tolist(), *bottom.tolist(), *others.tolist()})
    return Sample(
        top=Group([rows[i] for i in top.tolist()], size, float(cosines[order[-size]])),
        bottom=Group([rows[i] for i in bottom.tolist()], size, float(cosines[order[size - 1]])),
        references=[rows[i] for i in others.tolist()],
        scored=len(cosines),
        defined=len(defined),
        histogram=np.histogram(cosines[defined].clip(-1, 1), BINS, (-1, 1))[0].tolist(),
        metadata=metadata,
    )


def _batches(table: pq.ParquetFile, columns: Iterable[str]) -> Iterator[pa.RecordBatch]:
    return table.iter_batches(ROWS_AT_ONCE, columns=list(columns))


def _floats(column: pa.Array) -> np.ndarray:
    """float32 (n,), NaN for null."""
    return column.cast(pa.float32()).to_numpy(zero_copy_only=False).astype(np.float32)


def _rows(table: pq.ParquetFile, wanted: set[int]) -> dict[int, Row]:
    """The rows at some positions."""
    positions, first, found = np.array(sorted(wanted)), 0, {}
    for batch in _batches(table, COLUMNS):
        here = positions[(positions >= first) & (positions < first + len(batch))]
        taken = batch.take(pa.array(here - first)).to_pylist()
        found |= {position: Row(**values) for position, values in zip(here.tolist(), taken, strict=True)}
        first += len(batch)
    return found
