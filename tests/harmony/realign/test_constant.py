"""Weights that do not depend on conflict."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harmony import realign
from tests.harmony.realign.gradients import at_most, combine, draw, gram, lengths, seeds, some_losses

decades = st.sampled_from([0.0, 4.0, 20.0])


@settings(max_examples=10)
@given(seed=seeds, k=some_losses, decades=decades)
def test_sum_and_mean_are_what_they_are_called(seed, k, decades):
    g = draw(seed, k, decades=decades)
    assert torch.equal(combine(realign.summed(gram(g)), g), g.sum(1))
    torch.testing.assert_close(combine(realign.mean(gram(g)), g), g.mean(1))


@settings(max_examples=20)
@given(seed=seeds, k=some_losses, decades=decades)
def test_normalized_gradients_have_length_one(seed, k, decades):
    g = draw(seed, k, decades=decades)
    at_most((lengths(g * realign.normalized(gram(g))[..., None]) - 1).abs(), 1e-12)


def steps(method, blocks, n):
    state, found = method.init(), []
    for step in range(n):
        assert int(state.step) == step
        weights, state = method.update(blocks, state)
        found.append(weights)
    return torch.stack(found)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_random_weights_are_positive_and_sum_to_one(k):
    weights = steps(realign.random(), torch.eye(k, dtype=torch.float64).expand(50, k, k), 4)
    assert weights.shape == (4, 50, k) and (weights > 0).all()
    at_most((weights.sum(-1) - 1).abs(), 1e-14)


def test_random_weights_come_from_the_seed_and_the_step_and_the_place():
    blocks = torch.eye(3, dtype=torch.float64).expand(100, 3, 3)
    first, second = steps(realign.random(seed=1), blocks, 3), steps(realign.random(seed=2), blocks, 3)
    assert torch.equal(first, steps(realign.random(seed=1), 7 * blocks, 3))
    drawn = torch.cat([first, second]).flatten(0, 1)
    assert len(drawn.unique(dim=0)) == 600


@pytest.mark.parametrize("k", [2, 4])
def test_random_weights_are_the_softmax_of_normal_numbers(k):
    """Their log ratios are differences of standard normal numbers: variance 2, correlation 1/2, tails of a normal."""
    weights = steps(realign.random(seed=3), torch.eye(k, dtype=torch.float64).expand(10_000, k, k), 4).flatten(0, 1)
    n = len(weights)
    ratios = (weights[:, 1:] / weights[:, :1]).log() / math.sqrt(2)
    at_most(ratios.mean(0).abs(), 5 / math.sqrt(n))
    at_most((ratios.var(0) - 1).abs(), 5 * math.sqrt(2 / n))
    for bound, share in ((0.5, 0.3829), (1.0, 0.6827), (2.0, 0.9545), (3.0, 0.9973)):
        inside = (ratios.abs() < bound).double().mean(0)
        at_most((inside - share).abs(), 5 * math.sqrt(share * (1 - share) / n))
    if k > 2:
        expected = torch.full((k - 1, k - 1), 0.5) + 0.5 * torch.eye(k - 1)
        at_most((ratios.mT.corrcoef() - expected).abs(), 0.03)
