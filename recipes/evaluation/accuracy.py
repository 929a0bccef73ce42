"""Accuracy over the splits of a data set, and how far it could be off with other test clips."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Judged(NamedTuple):
    """The test clips of a split: whether each was classified rightly, bool (n,), and what it was cut from, (n,)."""

    hits: np.ndarray
    groups: np.ndarray


def accuracy(splits: Sequence[Judged], seed: int = 0, resamples: int = 2000) -> dict[str, Any]:
    """The mean accuracy over splits.

    Args:
        splits: One or more.
        seed: Of the bootstrap.
        resamples: Bootstrap samples.

    Returns:
        `top1`, and its 95% `interval` (low, high): groups of clips are resampled, in all splits alike. What other
        training clips would do is not in it.
    """
    names = np.unique(np.concatenate([split.groups for split in splits]))
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    resampled = []
    for hits, groups in splits:
        group = np.searchsorted(names, groups)
        right, sizes = (np.bincount(group, weights, len(names)) for weights in (hits, None))
        count = (draws @ sizes).astype(float)
        count[count == 0] = np.nan  # none of this split's groups was drawn: the others decide
        resampled.append(draws @ right / count)
    low, high = np.quantile(np.nanmean(resampled, axis=0), [0.025, 0.975])
    return {"top1": float(np.mean([split.hits.mean() for split in splits])), "interval": [float(low), float(high)]}
