"""Accuracy over the splits of a data set, and how far it could be off with other test clips."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from recipes.evaluation import bootstrap


class Judged(NamedTuple):
    """The test clips of a split: whether each was classified rightly, bool (n,), and what it was cut from, (n,)."""

    hits: np.ndarray
    groups: np.ndarray


def accuracy(splits: Sequence[Judged]) -> dict[str, Any]:
    """The mean accuracy over splits.

    Returns:
        `top1`, and its 95% `interval` (low, high): groups of clips are resampled, in all splits alike. What other
        training clips would do is not in it.
    """
    split = np.repeat(np.arange(len(splits)), [len(judged.hits) for judged in splits])
    tested = np.eye(len(splits))[split]  # (n, splits)
    right = tested * np.concatenate([judged.hits for judged in splits])[:, None]
    groups = np.concatenate([judged.groups for judged in splits])
    hits, counts = np.split(bootstrap.sums(np.hstack([right, tested]), groups), 2, axis=1)
    counts[counts == 0] = np.nan  # a draw has no group of this split: the other splits decide
    low, high = bootstrap.interval(np.nanmean(hits / counts, axis=1))
    return {"top1": float(np.mean([judged.hits.mean() for judged in splits])), "interval": [low, high]}
