"""The cosines of a run as curves over its steps: what the figures draw."""

import functools
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from harmony.stats import Histogram
from recipes.figures.dynamics.runs import Run
from recipes.training.dynamics import BINS, Dynamics, Seen

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
COLUMNS = 200  # most columns of a heat map
SAMPLES = 400  # cosines that a column holds, if the run is long enough for FEWEST columns
FEWEST = 12
FEW = 2000  # cosines in a column, below which its density is drawn with half the bins


class Curves(NamedTuple):
    """One name of one run over n columns of steps.

    Attributes:
        edges: Steps taken before each column, and after the last (n + 1,).
        samples: Number of cosines (n,).
        density: Their distribution (n, bins); each column integrates to 1.
        mean: Mean (n,).
        quantiles: Quantiles (n, 5), see `QUANTILES`.
        negative: Share of negative cosines (n,).
    """

    edges: np.ndarray
    samples: np.ndarray
    density: np.ndarray
    mean: np.ndarray
    quantiles: np.ndarray
    negative: np.ndarray

    @property
    def centres(self) -> np.ndarray:
        """The middle of each column (n,)."""
        return (self.edges[1:] + self.edges[:-1]) / 2

    @property
    def shown(self) -> np.ndarray:
        """The density of a heat map (n, bins), in fewer bins where there are few cosines."""
        n, bins = self.density.shape
        return self.density.reshape(n, bins // 2, 2).mean(-1) if np.median(self.samples) < FEW else self.density


@functools.cache
def curves(run: Run, name: str) -> Curves:
    """The curves of a name; neighbouring intervals are merged until a column has enough cosines to show."""
    own = run.dynamics.only(name)
    enough = int(own.total(name).moments.number) // SAMPLES
    series = _whole_columns(own.at_most(min(max(enough, FEWEST), COLUMNS)), name).of(name)
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
    """Without a last column that a run has only begun: it joins the one before."""
    if len(dynamics.intervals) < 2:
        return dynamics
    *rest, before, last = dynamics.intervals
    if 2 * last.seen[name].moments.number >= before.seen[name].moments.number:
        return dynamics
    return dynamics._replace(intervals=(*rest, before.merge(last)))


def bin_edges() -> np.ndarray:
    """Edges (bins + 1,) of the histograms."""
    return np.linspace(-1, 1, BINS + 1)


def distribution(seen: Seen) -> tuple[np.ndarray, np.ndarray]:
    """Density (bins,) of all cosines, and that of the normal distribution with their mean and standard deviation."""
    counts, m = seen.histogram.counts.numpy(), seen.moments
    below = norm.cdf(bin_edges(), float(m.mean), float(m.std))
    return counts / counts.sum() * BINS / 2, np.diff(below) * BINS / 2


def extent(densities: list[np.ndarray]) -> float:
    """The smallest tenth e such that no density (n, bins) has more than 0.1% of its cosines beyond [-e, e]."""
    middle = np.abs(bin_edges()[1:] + bin_edges()[:-1]) / 2
    tenths = np.arange(1, 11) / 10
    beyond = [max(float((d.mean(0)[middle > e]).sum() / d.mean(0).sum()) for d in densities) for e in tenths]
    return float(next(e for e, share in zip(tenths, beyond, strict=True) if share <= 0.001))


def darkest(drawn: list[Curves]) -> float:
    """The density at which the colours of heat maps end: few places are denser."""
    return max(float(np.quantile(c.shown, 0.995)) for c in drawn)


def share_range(drawn: list[Curves]) -> tuple[float, float]:
    """Limits around one half that hold all shares of negatives."""
    reach = max(0.05, 1.15 * max(float(np.abs(c.negative - 0.5).max()) for c in drawn))
    return max(0.0, 0.5 - reach), min(1.0, 0.5 + reach)
