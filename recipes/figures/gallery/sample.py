"""Draws the clips of a gallery from a table of scores, which is streamed: millions of rows fit."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recipes.figures.gallery.media import Row
from recipes.keys import key
from recipes.restore import RestoreKeys
from recipes.scoring.table import facts_of, numbers, rows_at

COLUMNS = ("clip", "id", "video", "caption", "start", "end", "cosine")
BINS = 64  # of the histogram of cosines


@dataclass
class GalleryKeys(RestoreKeys):
    """What to show of which table."""

    scores: Path = key(meaning="table of recipes.score")
    out: Path = key(Path("gallery.html"), "the page; the sheet is NAME.png beside it")
    share: float = key(0.05, "of the clips with a cosine, at each end", more_than=0, most=0.5)
    count: int = key(50, "clips drawn from each end", least=1)
    seed: int = key(0, "of the draw", least=0)
    checkpoint: Path | None = key(None, "of the model that tests the words; null: the one of the scores")

    def problems(self) -> Iterator[str]:
        """A page that no browser would open."""
        if self.out.suffix.lower() not in (".html", ".htm"):
            yield f"out={self.out}: expected the page's name to end in .html"


@dataclass(frozen=True)
class Sample:
    """What a gallery shows of a table."""

    groups: dict[str, list[Row]]  # clips drawn from the two ends, {"top", "bottom"}, in this order
    cuts: dict[str, float]  # the cosine at which each group ends
    size: int  # clips that each group has
    references: list[Row]  # drawn from all that have a cosine, as many as were asked for or as there are
    scored: int  # rows of the table
    defined: int  # those with a cosine
    histogram: list[int]  # counts of the cosines in BINS equal bins of [-1, 1]
    metadata: dict[str, Any]  # how the table was made, as `recipes.score` wrote it


def draw(path: Path, share: float, count: int, seed: int, references: int) -> Sample:
    """Draw clips from both ends of the distribution of cosines, and references from all of it.

    The groups are the `share` of clips with the highest and with the lowest cosines, at least one clip each, of which
    `count` are drawn. Clips without a cosine (no sound, no text, unreadable) are in neither. All is in random order.
    """
    metadata = facts_of(path, COLUMNS)
    cosines = numbers(path, "cosine")
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
    rows = {position: Row(**values) for position, values in rows_at(path, COLUMNS, {*top, *bottom, *others}).items()}
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
