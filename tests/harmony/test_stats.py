"""Streaming statistics: equal to numpy on all values at once, however they were cut and merged."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harmony import stats

values = st.lists(st.floats(-1, 1), min_size=0, max_size=30)


@given(values, values, values)
def test_merging_is_associative_and_loses_nothing(a, b, c):
    parts = [torch.tensor(x, dtype=torch.float64) for x in (a, b, c)]
    for statistic in (stats.moments, stats.histogram):
        x, y, z = map(statistic, parts)
        left, right, whole = x.merge(y).merge(z), x.merge(y.merge(z)), statistic(torch.cat(parts))
        for one, other in ((left, right), (left, whole)):
            for p, q in zip(one, other, strict=True):
                torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-9)


def test_moments_of_a_skewed_sample():
    x = np.random.default_rng(0).exponential(size=1000)
    m = functools.reduce(stats.Moments.merge, map(stats.moments, torch.from_numpy(x).split(77)))
    d = x - x.mean()
    assert float(m.mean) == pytest.approx(x.mean())
    assert float(m.std) == pytest.approx(x.std(ddof=1))
    assert float(m.skew) == pytest.approx((d**3).mean() / (d**2).mean() ** 1.5)
    assert float(m.kurtosis) == pytest.approx((d**4).mean() / (d**2).mean() ** 2 - 3)


def test_masks_leave_values_out():
    x, mask = torch.tensor([0.5, -0.5, 0.9]), torch.tensor([True, True, False])
    assert float(stats.moments(x, mask).mean) == 0
    assert int(stats.histogram(x, mask).counts.sum()) == 2
    x[2] = torch.nan
    assert float(stats.moments(x, mask).mean) == 0 and int(stats.histogram(x).counts.sum()) == 2
    nothing = stats.moments(x, torch.zeros(3, dtype=torch.bool))
    assert nothing.mean.isnan() and nothing.std.isnan()


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=200))
def test_histogram_counts_like_numpy_and_quantiles_are_within_a_bin(xs):
    x = np.array(xs)
    h = stats.histogram(torch.from_numpy(x), bins=50)
    assert int(h.counts.sum()) == len(x)
    assert h.edges[0] == -1 and h.edges[-1] == 1 and len(h.edges) == 51
    for q in (0.0, 0.25, 0.5, 1.0):
        exact = np.quantile(x, q, method="inverted_cdf")
        assert abs(float(h.quantile(q)) - exact) <= 2 / 50 + 1e-9


def test_values_beyond_the_range_are_counted_at_the_ends():
    assert stats.histogram(torch.tensor([-1.0, -1.2, 1.0, 1.0001]), bins=2).counts.tolist() == [2, 2]


def test_histograms_of_different_bins_do_not_merge():
    with pytest.raises(ValueError, match="2 and 3 bins"):
        stats.histogram(torch.zeros(1), bins=2).merge(stats.histogram(torch.zeros(1), bins=3))


def test_conflict_rate_counts_defined_samples_only():
    gram = torch.tensor([[[1.0, -0.5], [-0.5, 1.0]], [[1.0, 0.5], [0.5, 1.0]], [[1.0, 0.0], [0.0, 0.0]]])
    assert float(stats.conflict_rate(gram)) == 0.5
