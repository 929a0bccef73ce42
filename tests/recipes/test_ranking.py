"""Ranks and recall: against sorting by hand, with ties counted against us."""

import statistics
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recipes.evaluation import ranking


@given(st.integers(0, 1000), st.integers(1, 20))
def test_ranks_are_positions_in_the_sorted_list(seed, n):
    g = torch.Generator().manual_seed(seed)
    queries, items = torch.randn(2, n, 4, dtype=torch.float64, generator=g)
    unit = [x / x.norm(dim=-1, keepdim=True) for x in (queries, items)]
    for i, rank in enumerate(ranking.ranks(queries, items).tolist()):
        order = sorted(range(n), key=lambda j: -float(unit[0][i] @ unit[1][j]))
        assert order.index(i) + 1 == rank
        assert ranking.best(queries[i], items, n) == order


SMALL = st.lists(st.integers(-2, 2), min_size=3, max_size=3)


@given(st.lists(st.tuples(SMALL, SMALL), min_size=1, max_size=8))
def test_ranks_with_ties_are_those_of_exact_arithmetic(pairs):
    """Whole numbers of few values tie often; cosines are compared by their squares, as fractions."""

    def cosine(query, item):
        dot, size = sum(q * x for q, x in zip(query, item, strict=True)), sum(x * x for x in item)
        return Fraction(dot * abs(dot), size) if size else Fraction(0)

    queries, items = zip(*pairs, strict=True)
    expected = [sum(cosine(q, item) >= cosine(q, own) for item in items) for q, own in pairs]
    found = ranking.ranks(torch.tensor(queries, dtype=torch.float32), torch.tensor(items, dtype=torch.float32))
    assert found.tolist() == expected


@given(st.integers(0, 1000), st.integers(1, 12))
def test_ranks_follow_the_pairs_and_copies_of_an_item_count_against_us(seed, n):
    rng = np.random.default_rng(seed)
    queries, items = torch.from_numpy(rng.normal(size=(2, n, 8)).astype(np.float32))
    found = ranking.ranks(queries, items)
    order = torch.from_numpy(rng.permutation(n))
    assert torch.equal(ranking.ranks(queries[order], items[order]), found[order])
    copies = items * (1 + torch.from_numpy(rng.uniform(-1e-7, 1e-7, (n, 8)).astype(np.float32)))  # rounding
    twice = ranking.ranks(torch.cat([queries, queries]), torch.cat([items, copies]))
    assert torch.equal(twice, 2 * torch.cat([found, found]))


def test_blocks_of_queries_change_nothing(monkeypatch):
    queries, items = torch.randn(2, 23, 4, generator=torch.Generator().manual_seed(0))
    whole = ranking.ranks(queries, items)
    monkeypatch.setattr(ranking, "BLOCK", 5)
    assert torch.equal(ranking.ranks(queries, items), whole)


@given(st.integers(0, 1000), st.integers(1, 30))
def test_recall_median_and_mean_are_those_of_a_plain_count(seed, n):
    queries, items = torch.randn(2, n, 3, generator=torch.Generator().manual_seed(seed))
    found = ranking.ranks(queries, items).tolist()
    result = ranking.evaluate(queries, items, ["v"] * n, resamples=2)
    for k in (1, 5, 10):
        assert result[f"R@{k}"] == pytest.approx(len([r for r in found if r <= k]) / n)
    assert result["median_rank"] == statistics.median(found) and result["mean_rank"] == pytest.approx(
        statistics.mean(found)
    )


def test_ties_and_nan_count_against_us():
    same = torch.ones(5, 3)
    assert ranking.ranks(same, same).tolist() == [5] * 5
    items = torch.eye(3)
    items[1] = torch.nan
    assert ranking.ranks(torch.eye(3), items)[1] == 3


def test_recall_chance_and_median():
    items = torch.eye(20)
    queries = torch.eye(20)
    queries[10:] = 0.1 * torch.eye(20)[10:] + torch.eye(20)[:10]  # half of them prefer another
    result = ranking.evaluate(queries, items, [f"video {i // 2}" for i in range(20)])
    assert [result[f"R@{k}"] for k in (1, 5, 10)] == [0.5, 1.0, 1.0]
    assert [result[f"R@{k}_chance"] for k in (1, 5, 10)] == [0.05, 0.25, 0.5]
    assert result["median_rank"] == 1.5 and result["pairs"] == 20
    low, high = result["R@1_interval"]
    assert low < 0.5 < high
    assert result["R@10_interval"] == pytest.approx([20 / (20 + 1.959964**2), 1.0])  # Wilson's of 20 of 20


def test_intervals_cover_the_truth_and_grow_when_clips_of_a_video_are_alike():
    """Recall 0.3 in truth: over many draws the 95% interval misses it about one time in twenty."""
    rng = np.random.default_rng(0)
    missed, widths = 0, []
    for _ in range(100):
        hit = rng.random(120) < 0.3
        queries = torch.eye(120)
        queries[~hit] = queries[~hit].roll(1, 1)
        single = ranking.evaluate(queries, torch.eye(120), list(map(str, range(120))), resamples=300)["R@1_interval"]
        missed += not single[0] <= 0.3 <= single[1]
        widths.append(single[1] - single[0])
    assert missed <= 15
    alike = torch.eye(120)
    wrong = np.repeat(rng.random(12) < 0.7, 10)
    alike[wrong] = alike[wrong].roll(1, 1)
    grouped = ranking.evaluate(alike, torch.eye(120), [str(i // 10) for i in range(120)])["R@1_interval"]
    assert grouped[1] - grouped[0] > 1.5 * max(widths)


def test_as_dict_has_what_the_report_shows():
    keys = ranking.evaluate(torch.eye(3), torch.eye(3), ["a", "b", "c"]).keys()
    assert {"pairs", "median_rank", "R@10", "R@10_interval", "R@10_chance"} <= keys


def test_fewer_pairs_than_k_is_certain():
    assert ranking.evaluate(torch.randn(3, 2), torch.randn(3, 2), ["a"] * 3)["R@5"] == pytest.approx(1.0)
