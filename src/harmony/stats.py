"""Statistics of agreement over a run: conflict rate, moments and histograms that merge across steps and processes."""

from typing import NamedTuple

import torch
from torch import Tensor

from harmony.checkpoint import loadable
from harmony.cosines import agreement, defined


def conflict_rate(gram: Tensor) -> Tensor:
    """Share of samples with conflicting gradients, among the samples with an agreement.

    Args:
        gram: Gram blocks (B, K, K).

    Returns:
        0-d tensor in [0, 1]; NaN where no sample has an agreement.

    Examples:
        >>> harmony.stats.conflict_rate(torch.tensor([[[1.0, -0.5], [-0.5, 1.0]], [[1.0, 0.5], [0.5, 1.0]]]))
        tensor(0.5000)
    """
    return (agreement(gram) < 0).sum() / defined(gram).sum()


@loadable
class Moments(NamedTuple):
    """Number, mean and central moment sums of values, in float64.

    Attributes:
        number: How many values.
        average: Their mean.
        m2: Sum of squared deviations from the mean.
        m3: Sum of cubed deviations.
        m4: Sum of deviations to the fourth power.
    """

    number: Tensor
    average: Tensor
    m2: Tensor
    m3: Tensor
    m4: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean; NaN without values."""
        return torch.where(self.number > 0, self.average, torch.nan)

    @property
    def std(self) -> Tensor:
        """Standard deviation of the sample (n - 1); NaN of fewer than two values."""
        return torch.where(self.number > 1, (self.m2 / (self.number - 1)).sqrt(), torch.nan)

    @property
    def skew(self) -> Tensor:
        """Skewness, 0 for a normal distribution; NaN of equal values."""
        return self.number.sqrt() * self.m3 / self.m2**1.5

    @property
    def kurtosis(self) -> Tensor:
        """Excess kurtosis, 0 for a normal distribution; NaN of equal values."""
        return self.number * self.m4 / self.m2**2 - 3

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both sets of values together, up to rounding (Pebay, 2008, equations 3.1 and 3.2)."""
        n, na, nb = self.number + other.number, self.number, other.number
        safe = n.clamp(min=1)
        d = other.average - self.average
        a, b = na / safe, nb / safe
        m2 = self.m2 + other.m2 + d**2 * na * b
        m3 = self.m3 + other.m3 + d**3 * na * b * (a - b) + 3 * d * (a * other.m2 - b * self.m2)
        m4 = (
            self.m4
            + other.m4
            + d**4 * na * b * (a**2 - a * b + b**2)
            + 6 * d**2 * (a**2 * other.m2 + b**2 * self.m2)
            + 4 * d * (a * other.m3 - b * self.m3)
        )
        return Moments(n, self.average + d * b, m2, m3, m4)


def moments(values: Tensor, mask: Tensor | None = None) -> Moments:
    """Moments of the values of one batch.

    Args:
        values: Values (B,).
        mask: Which of them count (B,): ``harmony.defined(gram)`` for agreement.

    Returns:
        [Moments][harmony.stats.Moments].

    Examples:
        >>> m = harmony.stats.moments(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        >>> float(m.mean), float(m.skew), round(float(m.kurtosis), 2)
        (2.5, 0.0, -1.36)
    """
    mask = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    values = torch.where(mask, values.detach().double(), 0)
    number = mask.double().sum()
    mean = values.sum() / number.clamp(min=1)
    d = torch.where(mask, values - mean, 0)
    return Moments(number, mean, (d**2).sum(), (d**3).sum(), (d**4).sum())


@loadable
class Histogram(NamedTuple):
    """Counts (bins,) of values in equal bins over [-1, 1]."""

    counts: Tensor

    @property
    def edges(self) -> Tensor:
        """Edges (bins + 1,) of the bins."""
        return torch.linspace(-1, 1, len(self.counts) + 1, dtype=torch.float64)

    def merge(self, other: "Histogram") -> "Histogram":
        """The histogram of both sets of values together; associative and commutative."""
        if len(self.counts) != len(other.counts):
            raise ValueError(f"histograms of {len(self.counts)} and {len(other.counts)} bins do not merge.")
        return Histogram(self.counts + other.counts)

    def quantile(self, q: float) -> Tensor:
        """The value below which a share ``q`` of the values lies, to within a bin; NaN without values."""
        counts = self.counts.cpu()
        total = counts.cumsum(0).double()
        # at least one value: an empty bin holds no quantile
        index = torch.searchsorted(total, (q * total[-1]).clamp(min=1)).clamp(max=len(counts) - 1)
        below = total[index] - counts[index]
        inside = ((q * total[-1] - below) / counts[index]).clamp(0, 1)
        return self.edges[index] + inside * 2 / len(counts)


def histogram(values: Tensor, mask: Tensor | None = None, bins: int = 100) -> Histogram:
    """Histogram of the values of one batch over [-1, 1]; the outer bins take values beyond, no bin takes NaN.

    Args:
        values: Values (B,).
        mask: Which of them count (B,).
        bins: Number of bins.

    Returns:
        [Histogram][harmony.stats.Histogram].

    Examples:
        >>> first = harmony.stats.histogram(torch.tensor([-0.9, 0.1, 0.2]), bins=4)
        >>> second = harmony.stats.histogram(torch.tensor([1.0, -1.0]), bins=4)
        >>> first.merge(second).counts
        tensor([2, 0, 2, 1])
    """
    values = values.detach()
    index = ((values.double() + 1) / 2 * bins).long().clamp(0, bins - 1)
    counted = ~values.isnan() if mask is None else mask & ~values.isnan()
    return Histogram(torch.zeros(bins, dtype=torch.int64, device=values.device).scatter_add(0, index, counted.long()))
