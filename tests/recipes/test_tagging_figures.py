"""Figures of tagging against their definitions, counted by hand, and against a simulation of what d-prime means."""

import numpy as np
import pytest

from recipes.evaluation.tagging import d_prime, figures_of


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Precision at each positive clip, in the order of the scores, on average."""
    order = np.argsort(-scores)
    return float(np.mean([truth[order[: i + 1]].mean() for i in range(len(order)) if truth[order[i]]]))


def area(scores: np.ndarray, truth: np.ndarray) -> float:
    """Share of pairs of a positive and a negative clip in the right order; a tie is half a pair."""
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[truth] for n in scores[~truth]]
    return float(np.mean(pairs))


def test_figures_are_means_of_their_definitions() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((40, 6)) < 0.3
    scores = rng.standard_normal((40, 6)) + truth
    found = figures_of(scores, truth)
    assert found["map"] == pytest.approx(np.mean([average_precision(scores[:, c], truth[:, c]) for c in range(6)]))
    areas = [area(scores[:, c], truth[:, c]) for c in range(6)]
    assert found["auc"] == pytest.approx(np.mean(areas))
    assert found["d_prime"] == pytest.approx(np.mean([d_prime(a, 10**6) for a in areas]))
    assert found["d_prime_of_auc"] == pytest.approx(d_prime(np.mean(areas), 10**6))
    assert found["map_chance"] == pytest.approx(truth.mean())
    assert (found["classes"], found["left_out"]) == (6, [])


def test_ties_are_half_a_pair() -> None:
    truth = np.array([[True], [False], [False], [False]])
    assert figures_of(np.zeros((4, 1)), truth)["auc"] == 0.5


def test_d_prime_is_the_distance_of_two_normal_distributions() -> None:
    """Scores of positives 1.3 deviations above those of negatives: the area is counted, the distance comes back."""
    rng = np.random.default_rng(1)
    truth = np.arange(4000) < 2000
    scores = rng.standard_normal(4000) + 1.3 * truth
    assert figures_of(scores[:, None], truth[:, None])["d_prime"] == pytest.approx(1.3, abs=0.1)


def test_a_perfect_order_is_finite_and_grows_with_the_clips() -> None:
    few, many = (figures_of(np.arange(n)[:, None], (np.arange(n) >= n // 2)[:, None]) for n in (8, 800))
    assert few["auc"] == many["auc"] == 1
    assert 0 < few["d_prime"] < many["d_prime"] < np.inf
    assert d_prime(0.0, 100) == pytest.approx(-d_prime(1.0, 100))


def test_classes_that_cannot_be_judged_are_left_out_and_named() -> None:
    truth = np.array([[1, 0, 1, 0], [0, 0, 1, 1], [1, 0, 1, 0]], bool)
    found = figures_of(np.random.default_rng(0).random((3, 4)), truth)
    assert (found["classes"], found["left_out"]) == (2, [1, 2])
    with pytest.raises(ValueError, match="none of the 2 classes has both"):
        figures_of(np.zeros((3, 2)), truth[:, 1:3])
