"""Draws the clips of a gallery from a table of scores, which is streamed: millions of rows fit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recipes.figures.gallery.media import Row
from recipes.scoring.table import columns, facts_of, opened

COLUMNS = ("clip", "id", "video", "caption", "start", "end", "cosine")
ROWS_AT_ONCE = 65_536
BINS = 64  # of the histogram of cosines


@dataclass(frozen=True)
class Sample:
    """What a gallery shows of a table.

    Attributes:
        groups: Clips drawn from the two ends, {"top", "bottom"}, in this order.
        cuts: The cosine at which each group ends.
        size: Clips that each group has.
        references: Clips drawn from all that have a cosine, as many as were asked for or as there are.
        scored: Rows of the table.
        defined: Those with a cosine.
        histogram: Counts of the cosines in BINS equal bins of [-1, 1].
        metadata: How the table was made, as `recipes.score` wrote it.
    """

    groups: dict[str, list[Row]]
    cuts: dict[str, float]
    size: int
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
        count: Clips to draw from each group, at least 1; a smaller group is taken whole.
        seed: Of the draws.
        references: Clips to draw from all that have a cosine.

    Returns:
        The sample; each list is in random order.

    Raises:
        OSError, ValueError: The table cannot be read, lacks a column, or has fewer than two clips with a cosine.
    """
    metadata = facts_of(path, COLUMNS)
    pieces = [piece["cosine"].astype(np.float32) for piece in columns(path, ["cosine"])]
    cosines = np.concatenate([np.empty(0, np.float32), *pieces])
    defined = np.flatnonzero(np.isfinite(cosines))
    if len(defined) < 2:
        raise ValueError(
            f"{path}: {len(defined)} of {len(cosines)} clips have a cosine; a gallery needs at least two that do"
        )
    order = defined[np.argsort(cosines[defined], kind="stable")]
    size = max(1, int(share * len(order)))
    rng = np.random.default_rng(seed)
    top, bottom = (rng.permutation(end)[:count].tolist() for end in (order[-size:], order[:size]))
    others = rng.permutation(defined)[:references].tolist()
    with opened(path, COLUMNS) as table:
        rows = _rows(table, {*top, *bottom, *others})
    return Sample(
        groups={"top": [rows[i] for i in top], "bottom": [rows[i] for i in bottom]},
        cuts={"top": float(cosines[order[-size]]), "bottom": float(cosines[order[size - 1]])},
        size=size,
        references=[rows[i] for i in others],
        scored=len(cosines),
        defined=len(defined),
        histogram=np.histogram(cosines[defined].clip(-1, 1), BINS, (-1, 1))[0].tolist(),
        metadata=metadata,
    )


def _rows(table: pq.ParquetFile, wanted: set[int]) -> dict[int, Row]:
    """The rows at some positions."""
    positions, first, rows = np.array(sorted(wanted)), 0, {}
    for batch in table.iter_batches(ROWS_AT_ONCE, columns=list(COLUMNS)):
        here = positions[(positions >= first) & (positions < first + len(batch))]
        taken = batch.take(pa.array(here - first)).to_pylist()
        rows |= {position: Row(**values) for position, values in zip(here.tolist(), taken, strict=True)}
        first += len(batch)
    return rows
