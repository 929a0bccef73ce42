"""The bootstrap: how far a figure could be off with other clips. Clips that are alike are drawn together."""

from collections.abc import Iterator

import numpy as np
from scipy.stats import binomtest

RESAMPLES = 2000
LEVELS = (0.025, 0.975)  # of a 95% interval


def sums(values: np.ndarray, groups: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Sums (resamples, k) over clips whose groups are drawn with replacement; a draw has as many groups as the data.

    The ratio of two columns is the bootstrap of a ratio. For a mean, one of them is a column of ones.

    Args:
        values: (n, k), k columns of the n clips.
        groups: (n,), equal for clips that are drawn together.
        seed, resamples: Of the draws, and their number.
    """
    names, group = np.unique(groups, return_inverse=True)
    totals = np.stack([np.bincount(group, column, len(names)) for column in values.T], axis=1)
    rng, shares = np.random.default_rng(seed), np.full(len(names), 1 / len(names))
    return np.stack([rng.multinomial(len(names), shares) @ totals for _ in range(resamples)])


def draws(units: int, seed: int = 0, resamples: int = RESAMPLES) -> Iterator[np.ndarray]:
    """Positions of units drawn with replacement, (units,) in each draw: for statistics that are no ratios of sums."""
    rng = np.random.default_rng(seed)
    return (rng.integers(units, size=units) for _ in range(resamples))


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95% interval of resampled values (resamples,)."""
    low, high = np.quantile(values, LEVELS)
    return float(low), float(high)


def share_interval(values: np.ndarray, hits: int, number: int) -> tuple[float, float]:
    """The 95% interval of a share, hits of number, by its resampled values (resamples,).

    Where all of them are equal, as at 0 and 100% and for a single group, they say nothing: then it is Wilson's.

    Examples:
        >>> import numpy as np
        >>> [round(bound, 3) for bound in share_interval(np.zeros(100), hits=0, number=23)]
        [0.0, 0.143]
    """
    return interval(values) if np.ptp(values) > 0 else wilson(hits, number)


def wilson(hits: int, number: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share of independent counts (Wilson, 1927); it is no point at 0 and 100% either.

    Examples:
        >>> [round(bound, 3) for bound in wilson(23, 23)]
        [0.857, 1.0]
    """
    bounds = binomtest(hits, number).proportion_ci(confidence_level=0.95, method="wilson")
    return float(bounds.low), float(bounds.high)
