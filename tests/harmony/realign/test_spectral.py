"""Aligned-MTL against the polar factor of the gradients' matrix, ConFIG against the angles that it promises."""

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
)

preferences = st.lists(st.sampled_from([0.0, 0.3, 1.0, 4.0]), min_size=6, max_size=6)


def columns(g):
    """The aligned gradients (B, K, D), one preference for each."""
    units = torch.eye(g.shape[1], dtype=g.dtype)
    return torch.stack([combine(realign.aligned_mtl(gram(g), preference=e.tolist()), g) for e in units], 1)


def aligned(g):
    """The same from the singular value decomposition of the gradients' matrix; singular values of zero left out."""
    left, values, right = torch.linalg.svd(g, full_matrices=False)
    kept = values > 1e-6 * values[:, :1]
    least = torch.where(kept, values, torch.inf).amin(-1)
    return least[:, None, None] * (left * kept[:, None]) @ right


@settings(max_examples=30)
@given(seed=seeds, k=some_losses, decades=st.sampled_from([0.0, 2.0, 4.0]))
def test_aligned_gradients_are_the_polar_factor_at_the_least_singular_value(seed, k, decades):
    g = in_general_position(seed, k, decades)
    found, least = columns(g), torch.linalg.svdvals(g)[:, -1]
    at_most((found - aligned(g)).norm(dim=(1, 2)), 1e-6 * least)
    values = torch.linalg.svdvals(found)
    at_most((values / least[:, None] - 1).abs(), 1e-6)  # all the same: the condition number is 1


@settings(max_examples=30)
@given(seed=seeds, k=some_losses, wanted=preferences)
def test_aligned_mtl_adds_up_the_aligned_gradients(seed, k, wanted):
    g = in_general_position(seed, k)
    least = torch.linalg.svdvals(g)[:, -1]
    d = combine(realign.aligned_mtl(gram(g)), g)
    at_most(lengths(d - aligned(g).sum(1)), 1e-8 * least)
    wanted = wanted[:k]
    d = combine(realign.aligned_mtl(gram(g), preference=wanted), g)
    at_most(lengths(d - combine(torch.tensor(wanted, dtype=torch.float64), aligned(g))), 1e-8 * least)


@settings(max_examples=30)
@given(seed=seeds, k=some_losses, dimension=st.integers(1, 4))
def test_aligned_mtl_of_dependent_gradients_leaves_out_what_they_do_not_span(seed, k, dimension):
    g = draw(seed, k, dimension, decades=0.0)
    values = torch.linalg.svdvals(g)
    g = g[values[:, 0] < 30 * values[:, -1]]
    d, least = combine(realign.aligned_mtl(gram(g)), g), torch.linalg.svdvals(g)[:, -1]
    at_most(lengths(d - aligned(g).sum(1)), 1e-8 * least)


def test_aligned_mtl_of_orthogonal_gradients_of_one_length_is_their_sum():
    g = torch.linalg.qr(draw(0, 4, 4)).Q * 3
    at_most((realign.aligned_mtl(gram(g)) - 1).abs(), 1e-12)


@settings(max_examples=30)
@given(seed=seeds, k=some_losses, decades=decades)
def test_config_has_equal_cosines_and_the_length_of_its_inner_products(seed, k, decades):
    g = in_general_position(seed, k, decades)
    d = combine(realign.config(gram(g)), g)
    cosines, products = inner(unit(d), unit(g)), inner(unit(d), g)
    assert (cosines > 0).all()
    at_most((cosines - cosines.mean(-1, keepdim=True)).abs(), 1e-9)
    at_most((lengths(d) / products.sum(-1) - 1).abs(), 1e-9)


@settings(max_examples=30)
@given(seed=seeds, k=some_losses, wanted=preferences)
def test_config_has_cosines_in_the_wanted_proportions(seed, k, wanted):
    wanted = torch.tensor([0.3, *wanted][:k], dtype=torch.float64)  # not all of them zero
    g = in_general_position(seed, k)
    d = combine(realign.config(gram(g), preference=wanted.tolist()), g)
    cosines, products = inner(unit(d), unit(g)), inner(unit(d), g)
    at_most((cosines / cosines[:, :1] - wanted / wanted[0]).abs(), 1e-8)
    at_most((lengths(d) / products.sum(-1) - 1).abs(), 1e-9)
    assert (cosines[:, wanted > 0] > 0).all()
    doubled = realign.config(gram(g), preference=(2 * wanted).tolist())
    same_weights(doubled, realign.config(gram(g), preference=wanted), g)  # only proportions count


@settings(max_examples=20)
@given(seed=seeds, dimension=dimensions, decades=decades)
def test_config_of_two_is_the_bisector(seed, dimension, decades):
    g = draw(seed, 2, dimension, decades)
    bisector = unit(unit(g).sum(1))
    expected = bisector * inner(bisector, g).sum(-1, keepdim=True)
    at_most(lengths(combine(realign.config(gram(g)), g) - expected), 1e-11 * lengths(g).sum(-1))


@pytest.mark.parametrize("k", [3, 4, 6])
def test_config_of_more_losses_than_dimensions_is_a_least_squares_fit(k):
    """The direction x minimises |U x - 1|: the residual is orthogonal to what the gradients span."""
    g = draw(k, k, k - 1)
    values = torch.linalg.svdvals(unit(g))
    g = g[values[:, 0] < 30 * values[:, -1]]
    d, u = combine(realign.config(gram(g)), g), unit(g)
    assert len(g) > 5
    at_most(1 - torch.cosine_similarity(combine(inner(d, u), u), u.sum(1)).abs(), 1e-9)
    at_most((lengths(d) - inner(unit(d), g).sum(-1).abs()).abs(), 1e-9 * lengths(g).sum(-1))
