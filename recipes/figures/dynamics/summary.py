"""The numbers of the distribution of cosines: mean, share of negatives, normality, and the ratio of two corpora."""

import math
from typing import Any

import numpy as np
from scipy import stats

from harmony.stats import Moments
from recipes.figures.dynamics.curves import bin_edges
from recipes.figures.dynamics.runs import Run, described
from recipes.training.dynamics import BINS, Seen, Series

BLOCKS = 20  # of consecutive steps, whose means are taken as independent
FEWEST_BLOCKS = 5  # below, no interval is given
FEWEST_SAMPLES = 20  # of an interval of steps whose normality is tested
LEVEL = 0.05
DRAWS = 10_000  # of the bootstrap


class Blocks:
    """Blocks of consecutive intervals: cosines within a step, and in steps nearby, are not independent.

    Attributes:
        number: Cosines in each block (J,).
        mean: Their means (J,).
        negative: Their shares of negatives (J,).
    """

    def __init__(self, series: Series) -> None:
        counts, average = series.seen.histogram.counts.numpy(), series.seen.moments.average.numpy()
        each, below = counts.sum(1), counts[:, : BINS // 2].sum(1)
        parts = np.array_split(np.arange(len(each)), min(BLOCKS, len(each)))
        self.number = np.array([each[part].sum() for part in parts])
        self.mean = np.array([(each[part] * average[part]).sum() for part in parts]) / self.number
        self.negative = np.array([below[part].sum() for part in parts]) / self.number


def summarise(run: Run, name: str) -> dict[str, Any]:
    """Everything about the cosines of a name in a run, as JSON takes it; None where there are too few of them."""
    series, seen = run.dynamics.of(name), run.dynamics.total(name)
    blocks, m = Blocks(series), seen.moments
    return {
        "run": run.name,
        "mode": run.term,
        "corpus": run.corpus,
        "over": described(run.config, name),
        "name": name,
        "samples": int(m.number),
        "steps": [int(series.first[0]), int(series.last[-1])],
        "blocks": len(blocks.mean),
        "mean": {"value": float(m.mean), "interval": interval(float(m.mean), blocks.mean)},
        "negative": _share(seen, blocks),
        "std": _number(m.std),
        "skew": _number(m.skew),
        "excess_kurtosis": _number(m.kurtosis),
        "normality": {**jarque_bera(m), "kolmogorov_distance": kolmogorov(seen), **by_interval(series)},
    }


def interval(value: float, blocks: np.ndarray) -> list[float] | None:
    """A 95% confidence interval by batch means: Student's t on the values of blocks (J,), taken as independent."""
    if len(blocks) < FEWEST_BLOCKS:
        return None
    half = stats.t.ppf(0.975, len(blocks) - 1) * blocks.std(ddof=1) / math.sqrt(len(blocks))
    return [value - float(half), value + float(half)]


def jarque_bera(m: Moments) -> dict[str, float | None]:
    """Jarque and Bera's test that the values are normal, from their moments: statistic and p-value."""
    statistic = _number(m.number / 6 * (m.skew**2 + m.kurtosis**2 / 4))
    return {"jarque_bera": statistic, "p": None if statistic is None else float(stats.chi2.sf(statistic, 2))}


def kolmogorov(seen: Seen) -> float | None:
    """Greatest distance between the distribution and the normal one of the same mean and std, at the edges of bins."""
    mean, std = float(seen.moments.mean), float(seen.moments.std)
    if not std > 0:
        return None
    below = seen.histogram.counts.cumsum(0).numpy() / float(seen.moments.number)
    return float(np.abs(below - stats.norm.cdf(bin_edges()[1:], mean, std)).max())


def by_interval(series: Series) -> dict[str, Any]:
    """Which share of intervals, each by itself, the same test finds no reason to call other than normal."""
    numbers = series.seen.histogram.counts.sum(1)
    tested = [i for i, number in enumerate(numbers.tolist()) if number >= FEWEST_SAMPLES]
    tests = [jarque_bera(Moments(*(part[i] for part in series.seen.moments)))["p"] for i in tested]
    passed = [p > LEVEL for p in tests if p is not None]
    return {
        "intervals_tested": len(passed),
        "intervals_normal": sum(passed) / len(passed) if passed else None,
        "samples_per_interval": float(np.median(numbers[tested])) if tested else None,
    }


def compare(run: Run, against: Run, name: str) -> dict[str, Any]:
    """The ratio of the means of two runs, numerator and denominator, with a bootstrap interval over blocks.

    Returns:
        {"run", "against", "difference": {"value", "interval"}, "ratio": {"value", "interval"} or None, "reason"}; a
        ratio to a mean that may be 0 says nothing, and none is given then, but the reason.
    """
    means = [float(r.dynamics.total(name).moments.mean) for r in (run, against)]
    blocks = [Blocks(r.dynamics.of(name)) for r in (run, against)]
    result: dict[str, Any] = {
        "run": run.name, "against": against.name, "means": means, "corpora": [run.corpus, against.corpus],
        "difference": {"value": means[0] - means[1], "interval": None}, "ratio": None, "reason": "",
    }  # fmt: skip
    if min(len(b.mean) for b in blocks) < FEWEST_BLOCKS:
        return result | {"reason": f"fewer than {FEWEST_BLOCKS} intervals of steps: no interval can be given"}
    drawn = [_resampled(b, seed) for seed, b in enumerate(blocks)]
    result["difference"]["interval"] = _percentiles(drawn[0] - drawn[1])
    low, high = interval(means[1], blocks[1].mean) or [-1.0, 1.0]
    if low <= 0 <= high:
        reason = (
            f"the mean of {against.name} may be 0 (95% interval {low:.4f} to {high:.4f}): a ratio to it says nothing"
        )
        return result | {"reason": reason}
    return result | {"ratio": {"value": means[0] / means[1], "interval": _percentiles(drawn[0] / drawn[1])}}


def _resampled(blocks: Blocks, seed: int) -> np.ndarray:
    """Means of blocks drawn with replacement (draws,)."""
    chosen = np.random.default_rng(seed).integers(len(blocks.mean), size=(DRAWS, len(blocks.mean)))
    weights = blocks.number[chosen]
    return (weights * blocks.mean[chosen]).sum(1) / weights.sum(1)


def _percentiles(values: np.ndarray) -> list[float]:
    return [float(x) for x in np.percentile(values, [2.5, 97.5])]


def _share(seen: Seen, blocks: Blocks) -> dict[str, Any]:
    """The share of negative cosines, with its interval inside [0, 1]."""
    value = float(seen.histogram.counts[: BINS // 2].sum() / seen.moments.number)
    found = interval(value, blocks.negative)
    return {"value": value, "interval": found and [max(found[0], 0.0), min(found[1], 1.0)]}


def _number(value: Any) -> float | None:
    """A number for JSON, which knows no NaN."""
    number = float(value)
    return number if math.isfinite(number) else None
