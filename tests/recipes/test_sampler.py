"""The order of training: no clip lost or doubled, the same on any number of processes and after any resume."""

from collections import Counter
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.data.sampler import BatchSampler, Source, dealt


@st.composite
def mixtures(draw) -> tuple[list[Source], int, int]:
    """Sources, batch size and seed."""
    sources = draw(st.lists(st.builds(Source, st.integers(1, 30), st.floats(0.05, 20)), min_size=1, max_size=4))
    return sources, draw(st.integers(1, 12)), draw(st.integers(0, 2**32))


@given(mixture=mixtures(), world=st.integers(1, 5), start=st.integers(0, 40))
def test_processes_and_resuming_change_nothing(mixture, world: int, start: int) -> None:
    whole = list(islice(BatchSampler(*mixture), start + 6))
    ranks = [list(islice(BatchSampler(*mixture, start, rank, world), 6)) for rank in range(world)]
    for step, slices in enumerate(zip(*ranks, strict=True)):
        assert [key for part in slices for key in part] == whole[start + step]
        assert max(map(len, slices)) - min(map(len, slices)) <= 1


@given(mixture=mixtures())
def test_each_epoch_has_each_clip_once(mixture) -> None:
    seen = Counter(key for keys in islice(BatchSampler(*mixture), 60) for key in keys)
    assert set(seen.values()) == {1}
    firsts = np.cumsum([0, *(source.size for source in mixture[0])])
    for first, last in pairwise(firsts):
        epochs = Counter(epoch for epoch, row in seen if first <= row < last)
        if epochs:  # all but the newest are whole, and none is left out
            assert sorted(epochs) == list(range(max(epochs) + 1))
            assert {epochs[epoch] for epoch in range(max(epochs))} <= {last - first}


@given(weights=st.lists(st.floats(0.01, 1), min_size=1, max_size=5), position=st.integers(0, 400))
def test_sources_are_dealt_by_weight(weights: list[float], position: int) -> None:
    weights = [weight / sum(weights) for weight in weights]
    due = sorted(((j + 0.5) / weight, source) for source, weight in enumerate(weights) for j in range(position + 1))[
        :position
    ]
    counts = Counter(source for _, source in due)
    assert dealt(weights, position) == [counts[source] for source in range(len(weights))]


def test_weights_are_met_in_the_long_run_also_by_small_batches() -> None:
    counts = np.array(dealt([0.7, 0.29, 0.01], 10**9))
    assert np.abs(counts - 1e9 * np.array([0.7, 0.29, 0.01])).max() < 3
    first = [row for keys in islice(BatchSampler([Source(5, 3), Source(7, 1)], 2, 0), 200) for _, row in keys]
    assert 298 <= sum(row < 5 for row in first) <= 302


def test_every_process_gets_its_share_of_every_source() -> None:
    sampler = BatchSampler([Source(8), Source(8)], 4, 0, rank=1, world=4)
    rows = [row for keys in islice(sampler, 400) for _, row in keys]
    assert 160 < sum(row < 8 for row in rows) < 240


def test_the_order_of_one_source_where_batches_fill_an_epoch() -> None:
    """What the numbers in the documentation rest on: a permutation for each epoch, cut into batches."""
    expected = [
        [(epoch, int(row)) for row in batch]
        for epoch in range(3)
        for batch in np.random.default_rng([7, epoch]).permutation(12).reshape(3, 4)
    ]
    assert list(islice(BatchSampler([Source(12)], 4, 7), 9)) == expected
    small = list(islice(BatchSampler([Source(3)], 8, 7), 2))  # fewer clips than a batch takes: all, each time
    assert [sorted(row for _, row in keys) for keys in small] == [[0, 1, 2]] * 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (([Source(0)], 1, 0), "expected sizes >= 1"),
        (([], 1, 0), "expected sizes >= 1"),
        (([Source(1)], 0, 0), "expected sizes >= 1"),
        (([Source(1)], 1, 0, -1), "expected sizes >= 1"),
        (([Source(1), Source(1, 0.0)], 1, 0), "positive weights"),
        (([Source(1)], 1, 0, 0, 2, 2), "0 <= rank < world"),
    ],
)
def test_sampler_refuses(arguments, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        BatchSampler(*arguments)
