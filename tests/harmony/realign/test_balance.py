"""IMTL-G, Nash-MTL and FairGrad: the equations that define them, on explicit gradients."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harmony import realign
from tests.harmony.realign.gradients import (
    at_most,
    combine,
    decades,
    dimensions,
    draw,
    gram,
    in_general_position,
    inner,
    lengths,
    same_weights,
    seeds,
    some_losses,
    unit,
    well_conditioned,
)

alphas = st.sampled_from([0.5, 1.0, 2.0, 4.0])


@settings(max_examples=30)
@given(seed=seeds, k=some_losses, decades=decades)
def test_imtl_g_has_equal_inner_products_with_all_unit_gradients(seed, k, decades):
    g = in_general_position(seed, k, decades)
    weights = realign.imtl_g(gram(g))
    products = inner(combine(weights, g), unit(g))
    size = (weights * lengths(g)).abs().sum(-1, keepdim=True)
    at_most((products - products.mean(-1, keepdim=True)).abs(), 1e-11 * size)
    at_most(-products, 0)  # no loss grows
    total, size = weights.sum(-1), weights.abs().sum(-1)
    at_most((total.abs() - 1).abs(), 1e-12 * size)  # minus one where no such combination has a positive sum


@settings(max_examples=20)
@given(seed=seeds, dimension=dimensions, decades=decades)
def test_imtl_g_of_two_weighs_by_the_inverse_norms(seed, dimension, decades):
    g = draw(seed, 2, dimension, decades)
    weights = realign.imtl_g(gram(g))
    at_most((weights - lengths(g).flip(1) / lengths(g).sum(-1, keepdim=True)).abs(), 1e-12)


def test_imtl_g_with_a_negative_weight_and_with_a_negative_sum():
    """The bisector of the outer two is nearer to the middle one than to them."""
    degrees = torch.tensor([[0.0, 60.0, 30.0]], dtype=torch.float64)
    tilt = torch.tensor([[0.0, 0.0, 20.0]], dtype=torch.float64)  # out of their plane
    a, t = degrees.deg2rad(), tilt.deg2rad()
    g = torch.stack([a.cos() * t.cos(), a.sin() * t.cos(), t.sin()], -1)
    weights = realign.imtl_g(gram(g))
    assert weights.amin() < 0 and abs(weights.sum() - 1) < 1e-12
    at_most(inner(combine(weights, g), g).diff().abs(), 1e-12)
    g[:, weights[0].argmin()] *= 0.1  # its weight becomes ten times larger: the sum is below zero
    weights = realign.imtl_g(gram(g))
    products = inner(combine(weights, g), unit(g))
    assert abs(weights.sum() + 1) < 1e-12 and products.amin() > 0
    at_most(products.diff().abs(), 1e-12 * weights.abs().sum())


@settings(max_examples=20)
@given(seed=seeds, k=st.integers(2, 5))
def test_imtl_g_of_repeated_gradients_splits_their_weight(seed, k):
    g = in_general_position(seed, k)
    repeated = torch.cat([g, 3 * g[:, :1]], 1)
    weights = realign.imtl_g(gram(repeated))
    products = inner(combine(weights, repeated), unit(repeated))
    size = (weights * lengths(repeated)).abs().sum(-1, keepdim=True)
    at_most((products - products.mean(-1, keepdim=True)).abs(), 1e-9 * size)
    at_most((weights[:, 0] - 3 * weights[:, -1]).abs() * lengths(g)[:, 0], 1e-9 * size[:, 0])  # the pseudo-inverse's


@settings(max_examples=20)
@given(seed=seeds, k=st.integers(3, 6), missing=st.integers(1, 2))
def test_imtl_g_of_more_losses_than_dimensions_is_a_least_squares_fit(seed, k, missing):
    """The residual of equal products is orthogonal to what the gradients span: U^T U d is parallel to U^T 1."""
    g = draw(seed, k, k - missing)
    values = torch.linalg.svdvals(unit(g))
    g = g[values[:, 0] < 30 * values[:, -1]]
    d, u = combine(realign.imtl_g(gram(g)), g), unit(g)
    at_most(1 - torch.cosine_similarity(combine(inner(d, u), u), u.sum(1)), 1e-9)


@settings(max_examples=30)
@given(seed=seeds, k=some_losses, decades=decades)
def test_nash_gives_every_loss_the_same_share(seed, k, decades):
    g = in_general_position(seed, k, decades)
    weights = realign.nash_mtl(gram(g))
    assert (weights > 0).all()
    d = combine(weights, g)
    at_most((weights * inner(d, g) - 1).abs(), 1e-8)
    at_most((lengths(d) - k**0.5).abs(), 1e-8)


@settings(max_examples=20)
@given(seed=seeds, k=st.integers(2, 6), dimension=st.integers(2, 8))
def test_nash_maximises_the_product_of_gains(seed, k, dimension):
    """Among updates of its length; also where fewer dimensions than losses are left, if all can gain at all."""
    generator = torch.Generator().manual_seed(seed)
    g = draw(seed, k, dimension)
    g = torch.where(inner(g.sum(1), g)[..., None] < 0, -g, g)
    d = combine(realign.nash_mtl(gram(g)), g)
    gains = inner(d, unit(g))
    possible = (gains > 1e-3).all(-1)
    near = d[:, None] + 0.3 * torch.randn(len(g), 300, dimension, dtype=torch.float64, generator=generator)
    near = unit(near) * lengths(d)[:, None, None]
    tried = (near @ unit(g).mT).clamp(min=0).log().sum(-1).amax(-1)
    at_most(tried[possible], gains.log().sum(-1)[possible] + 1e-8)


@settings(max_examples=20)
@given(seed=seeds, decades=decades, near=st.sampled_from([1.0, 1e-2, 1e-4]))
def test_nash_of_two_nearly_opposite_gradients(seed, decades, near):
    g = draw(seed, 2, decades=decades)
    g[:, 1] = lengths(g)[:, 1, None] * (-unit(g)[:, 0] + near * unit(g)[:, 1])
    weights = realign.nash_mtl(gram(g))
    gap = unit(g).sum(1).pow(2).sum(-1, keepdim=True) / 2  # 1 + cos, which the rounding of cos perturbs
    at_most((weights * inner(combine(weights, g), g) - 1).abs(), 4e-15 / gap + 1e-12)


@settings(max_examples=30)
@given(seed=seeds, k=some_losses, decades=decades, alpha=alphas)
def test_fairgrad_solves_its_equation(seed, k, decades, alpha):
    g = in_general_position(seed, k, decades)
    weights = realign.fairgrad(gram(g), alpha=alpha)
    assert (weights > 0).all()
    d = combine(weights, g)
    at_most((inner(d, g) - weights ** (-1 / alpha)).abs(), 1e-8 * lengths(g) * lengths(d)[:, None])


@pytest.mark.parametrize("decades", [2.0, 6.0, 10.0])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 4.0])
def test_fairgrad_of_many_samples_of_very_different_norms(alpha, decades):
    for k in (2, 3):
        g = in_general_position(k, k, decades, size=500)
        weights = realign.fairgrad(gram(g), alpha=alpha)
        d = combine(weights, g)
        at_most((inner(d, g) - weights ** (-1 / alpha)).abs(), 1e-8 * lengths(g) * lengths(d)[:, None])


@settings(max_examples=15)
@given(seed=seeds, k=some_losses)
def test_fairgrad_at_one_is_nash(seed, k):
    """Its equation is then the one that Nash-MTL solves, and has one positive solution."""
    g = well_conditioned(draw(seed, k))
    weights = realign.fairgrad(gram(g), alpha=1.0)
    at_most((weights * inner(combine(weights, g), g) - 1).abs(), 1e-8)
    same_weights(weights, realign.nash_mtl(gram(g)), g, 1e-8)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 4.0])
def test_fairgrad_of_orthogonal_gradients(alpha):
    """<g_k, d> = W_k |g_k|^2 = W_k^(-1/alpha), so W_k = |g_k|^(-2 alpha / (1 + alpha))."""
    squared = torch.tensor([[1.0, 16.0, 1e-4]], dtype=torch.float64)
    weights = realign.fairgrad(torch.diag_embed(squared), alpha=alpha)
    torch.testing.assert_close(weights, squared ** (-alpha / (1 + alpha)), rtol=1e-9, atol=0)


def test_fairness_grows_with_alpha():
    """The larger alpha, the more even the gains of gradients of different lengths."""
    g = in_general_position(0, 3, decades=1.0)
    spreads = []
    for alpha in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0):
        gains = inner(combine(realign.fairgrad(gram(g), alpha=alpha), g), g)
        spreads.append(gains.amax(-1) / gains.amin(-1))
    for less, more in itertools.pairwise(spreads):
        at_most(more, less * (1 + 1e-9))


@pytest.mark.parametrize("alpha", [0.09, 0.0, -1.0, float("nan")])
def test_fairgrad_refuses_other_alphas(alpha):
    with pytest.raises(ValueError, match=r"alpha must be at least 0\.1; got"):
        realign.fairgrad(torch.eye(2)[None], alpha=alpha)
