"""The numbers of cosines: curves over steps, moments with intervals, normality, the ratio of two corpora."""

import math
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from harmony.stats import Histogram, Moments
from recipes.evaluation import bootstrap
from recipes.figures.dynamics.runs import Run
from recipes.training.dynamics import BINS, Dynamics, Seen, Series

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MOST_COLUMNS, FEWEST_COLUMNS = 200, 12  # of a heat map
SAMPLES = 400  # cosines that a column holds, if the run is long enough for FEWEST_COLUMNS
FEW = 2000  # cosines in a column, below which its density is drawn with half the bins
BLOCKS = 20  # of consecutive steps, whose means are taken as independent
FEWEST_BLOCKS = 5  # below, no interval is given
FEWEST_SAMPLES = 20  # of an interval of steps whose normality is tested
LEVEL = 0.05
DRAWS = 10_000  # of the bootstrap
EDGES = np.linspace(-1, 1, BINS + 1)
MIDDLES = (EDGES[1:] + EDGES[:-1]) / 2


# -------------------------------------------------------------------------------------------------------------- curves
class Curves(NamedTuple):
    """One name of one run over n columns of steps."""

    edges: np.ndarray  # steps taken before each column, and after the last (n + 1,)
    samples: np.ndarray  # number of cosines (n,)
    density: np.ndarray  # their distribution (n, bins); each column integrates to 1
    mean: np.ndarray  # (n,)
    quantiles: np.ndarray  # (n, 5), see `QUANTILES`
    negative: np.ndarray  # share of negative cosines (n,)

    @property
    def coarse(self) -> np.ndarray:
        """The density for a heat map (n, bins), in half the bins where there are few cosines."""
        n, bins = self.density.shape
        return self.density.reshape(n, bins // 2, 2).mean(-1) if np.median(self.samples) < FEW else self.density


def curves(run: Run, name: str) -> Curves:
    """The curves of a name; neighbouring intervals are merged until a column has enough cosines to show."""
    own = run.dynamics.only(name)
    columns = int(own.total(name).moments.number) // SAMPLES
    series = _whole_columns(own.at_most(min(max(columns, FEWEST_COLUMNS), MOST_COLUMNS)), name).series(name)
    counts = series.seen.histogram.counts
    samples = counts.sum(1).double()
    quantiles = [[float(Histogram(row).quantile(q)) for q in QUANTILES] for row in counts]
    return Curves(
        edges=np.append(series.first.numpy() - 1, series.last[-1].item()),
        samples=counts.sum(1).numpy(),
        density=(counts / samples[:, None]).numpy() * BINS / 2,
        mean=series.seen.moments.average.numpy(),
        quantiles=np.array(quantiles),
        negative=(counts[:, : BINS // 2].sum(1) / samples).numpy(),
    )


def _whole_columns(dynamics: Dynamics, name: str) -> Dynamics:
    """Merge a last column that a run has only begun into the one before."""
    if len(dynamics.intervals) < 2:
        return dynamics
    *rest, before, last = dynamics.intervals
    if 2 * last.seen[name].moments.number >= before.seen[name].moments.number:
        return dynamics
    return dynamics._replace(intervals=(*rest, before.merge(last)))


def distribution(seen: Seen) -> tuple[np.ndarray, np.ndarray]:
    """Density (bins,) of all cosines, and that of the normal distribution with their mean and standard deviation."""
    counts, m = seen.histogram.counts.numpy(), seen.moments
    below = stats.norm.cdf(EDGES, float(m.mean), float(m.std))
    return counts / counts.sum() * BINS / 2, np.diff(below) * BINS / 2


def extent(densities: list[np.ndarray]) -> float:
    """The smallest tenth e such that no density (n, bins) has more than 0.1% of its cosines beyond [-e, e]."""
    shares = [density.mean(0) / density.mean(0).sum() for density in densities]
    tenths = (tenth / 10 for tenth in range(1, 11))
    return next(e for e in tenths if all(share[np.abs(MIDDLES) > e].sum() <= 0.001 for share in shares))


# ------------------------------------------------------------------------------------------------------------- summary
class Blocks(NamedTuple):
    """At most BLOCKS blocks (J) of consecutive intervals: cosines within a step, and nearby, are not independent."""

    number: np.ndarray
    mean: np.ndarray
    negative: np.ndarray


def in_blocks(series: Series) -> Blocks:
    """Cut a series into blocks."""
    counts, average = series.seen.histogram.counts.numpy(), series.seen.moments.average.numpy()
    each, negative = counts.sum(1), counts[:, : BINS // 2].sum(1)
    parts = np.array_split(np.arange(len(each)), min(BLOCKS, len(each)))
    sums = np.array([[x[part].sum() for part in parts] for x in (each, each * average, negative)])
    return Blocks(sums[0], sums[1] / sums[0], sums[2] / sums[0])


def summarise(run: Run, name: str) -> dict[str, Any]:
    """Everything about the cosines of a name in a run, as JSON takes it; None where there are too few of them."""
    series, seen = run.dynamics.series(name), run.dynamics.total(name)
    blocks, m = in_blocks(series), seen.moments
    negative = int(seen.histogram.counts[: BINS // 2].sum())
    return {
        "run": run.name,
        "mode": run.mode,
        "corpus": run.corpus,
        "over": run.over(name),
        "name": name,
        "samples": int(m.number),
        "steps": [int(series.first[0]), int(series.last[-1])],
        "blocks": len(blocks.mean),
        "mean": {"value": float(m.mean), "interval": interval(float(m.mean), blocks.mean)},
        "negative": {
            "value": negative / int(m.number),
            "interval": share_interval(negative, int(m.number), blocks.negative),
        },
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


def share_interval(hits: int, number: int, blocks: np.ndarray) -> list[float] | None:
    """As `interval`, of a share and within [0, 1]; Wilson's where all blocks (J,) have the same, as at 0 and 100%."""
    bounds = interval(hits / number, blocks)
    if bounds is not None and np.ptp(blocks) == 0:
        return list(bootstrap.wilson(hits, number))
    return bounds and [max(bounds[0], 0.0), min(bounds[1], 1.0)]


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
    return float(np.abs(below - stats.norm.cdf(EDGES[1:], mean, std)).max())


def by_interval(series: Series) -> dict[str, Any]:
    """The share of intervals of steps that pass Jarque and Bera's test, each by itself."""
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
        {"run", "against", "means", "corpora", "difference": {"value", "interval"}, "ratio": {"value", "interval"} or
        None, "reason"}; a ratio to a mean that may be 0 says nothing: it is None, and the reason says why.
    """
    means = [float(r.dynamics.total(name).moments.mean) for r in (run, against)]
    blocks = [in_blocks(r.dynamics.series(name)) for r in (run, against)]
    result: dict[str, Any] = {
        "run": run.name,
        "against": against.name,
        "means": means,
        "corpora": [run.corpus, against.corpus],
        "difference": {"value": means[0] - means[1], "interval": None},
        "ratio": None,
        "reason": "",
    }
    if min(len(b.mean) for b in blocks) < FEWEST_BLOCKS:
        return result | {"reason": f"fewer than {FEWEST_BLOCKS} intervals of steps: no interval can be given"}
    drawn = [_resampled_means(b, seed) for seed, b in enumerate(blocks)]
    result["difference"]["interval"] = list(bootstrap.interval(drawn[0] - drawn[1]))
    low, high = interval(means[1], blocks[1].mean) or [-1.0, 1.0]
    if low <= 0 <= high:
        bounds = f"95% interval {low:.4f} to {high:.4f}"
        return result | {"reason": f"the mean of {against.name} may be 0 ({bounds}): a ratio to it says nothing"}
    return result | {"ratio": {"value": means[0] / means[1], "interval": list(bootstrap.interval(drawn[0] / drawn[1]))}}


def _resampled_means(blocks: Blocks, seed: int) -> np.ndarray:
    """Means of blocks drawn with replacement (DRAWS,)."""
    chosen = np.stack(list(bootstrap.draws(len(blocks.mean), seed, DRAWS)))
    weights = blocks.number[chosen]
    return (weights * blocks.mean[chosen]).sum(1) / weights.sum(1)


def _number(value: Any) -> float | None:
    """A number for JSON, which knows no NaN."""
    number = float(value)
    return number if math.isfinite(number) else None
