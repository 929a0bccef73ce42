"""UPGrad and DualProj: the projection by trying every face of the cone, and the conditions of the programs."""

from functools import partial

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
    spreads,
    supports,
    unit,
)

BOTH = pytest.mark.parametrize("method", [realign.upgrad, realign.dualproj])
preferences = st.lists(st.sampled_from([0.0, 0.1, 1.0, 3.0]), min_size=8, max_size=8)


def nearest(v, g):
    """The nearest point to v (B, D) that no gradient (B, K, D) objects to: the best of the projections on all faces.

    Returns:
        The points (B, D), and how well they are defined (B,): the least singular value of a face that is not zero.
    """
    best, distance, least = torch.zeros_like(v), lengths(v), torch.ones(len(v), dtype=v.dtype)
    for support in supports(g.shape[1])[1:]:
        _, values, basis = torch.linalg.svd(unit(g)[:, list(support)], full_matrices=False)
        spanned = values > 1e-7
        candidate = v - combine(inner(v, basis) * spanned, basis)
        allowed = (inner(candidate, unit(g)) >= -1e-9 * lengths(v)[:, None]).all(-1)
        better = allowed & (lengths(candidate - v) < distance)
        best = torch.where(better[:, None], candidate, best)
        distance = torch.where(better, lengths(candidate - v), distance)
        least = torch.minimum(least, torch.where(spanned, values, 1).amin(-1))
    agree = (inner(v, g) >= 0).all(-1, keepdim=True)
    return torch.where(agree, v, best), least


def is_nearest(d, v, g, accuracy=1e-9):
    """Assert d is what ``nearest`` says, up to the 1e-12 that the methods add to the diagonal of the cosines."""
    expected, least = nearest(v, g)
    at_most(lengths(d - expected), (accuracy + 3e-12 / least**2) * lengths(g).sum(-1))


def units(k):
    return torch.eye(k, dtype=torch.float64).tolist()


@settings(max_examples=25)
@given(seed=seeds, k=some_losses, dimension=dimensions, decades=decades, spread=spreads)
def test_upgrad_adds_up_the_nearest_points_of_the_cone(seed, k, dimension, decades, spread):
    g = draw(seed, k, dimension, decades, spread, size=8)
    found = [combine(realign.upgrad(gram(g), preference=e), g) for e in units(k)]
    for i, d in enumerate(found):
        is_nearest(d, g[:, i], g)
    at_most(lengths(combine(realign.upgrad(gram(g)), g) - sum(found)), 1e-9 * lengths(g).sum(-1))


@settings(max_examples=25)
@given(seed=seeds, k=some_losses, dimension=dimensions, decades=decades, spread=spreads, wanted=preferences)
def test_dualproj_is_the_nearest_point_of_the_cone_to_the_sum(seed, k, dimension, decades, spread, wanted):
    g = draw(seed, k, dimension, decades, spread, size=8)
    d = combine(realign.dualproj(gram(g), preference=wanted[:k]), g)
    is_nearest(d, sum(p * g[:, i] for i, p in enumerate(wanted[:k])), g)


@settings(max_examples=5)
@given(seed=seeds)
def test_both_find_the_nearest_point_for_eight_losses(seed):
    g = draw(seed, 8, size=4)
    is_nearest(combine(realign.dualproj(gram(g)), g), g.sum(1), g)
    is_nearest(combine(realign.upgrad(gram(g), preference=units(8)[3]), g), g[:, 3], g)


@BOTH
@settings(max_examples=30)
@given(seed=seeds, k=st.sampled_from([1, 2, 3, 4, 5, 6, 8]), dimension=dimensions, decades=decades, spread=spreads)
def test_no_gradient_objects_to_the_update(method, seed, k, dimension, decades, spread):
    g = draw(seed, k, dimension, decades, spread)
    d = combine(method(gram(g)), g)
    at_most(-inner(d, unit(g)), 1e-7 * lengths(g).sum(-1, keepdim=True))


@BOTH
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.3), (torch.float16, 0.1)])
def test_nor_in_coarser_precision_to_the_rounding_of_its_gram(method, dtype, tolerance):
    """A rounded Gram of dependent gradients may have negative eigenvalues: the conflicts left are as small as these."""
    for k, dimension, spread, size in ((2, 2, 1.0, 100), (3, 2, 0.1, 100), (8, 2, 0.1, 600)):
        g = draw(k, k, dimension, decades=0.0, spread=spread, size=size)
        d = combine(method(gram(g).to(dtype)).double(), g)
        at_most(-inner(d, unit(g)), tolerance * lengths(g).sum(-1, keepdim=True))


@BOTH
@settings(max_examples=30)
@given(seed=seeds, k=st.sampled_from([2, 3, 4, 6, 8]), decades=st.sampled_from([0.0, 4.0]))
def test_conditions_of_the_quadratic_program(method, seed, k, decades):
    """Of min |sum_k v_k g_k| over v >= u: for UPGrad one for each gradient, u a unit vector."""
    g = in_general_position(seed, k, decades)
    for wanted in [[1.0] * k] if method is realign.dualproj else units(k):
        weights = method(gram(g), preference=wanted)
        added = weights - torch.tensor(wanted, dtype=torch.float64)
        products = inner(combine(weights, g), unit(g))
        scale = lengths(g).amax(-1, keepdim=True)
        at_most(-added * lengths(g), 1e-10 * scale)
        at_most(-products, 1e-9 * scale)
        at_most((added * lengths(g) * products).abs(), 1e-9 * scale**2)


@BOTH
@settings(max_examples=20)
@given(seed=seeds, k=st.sampled_from([1, 2, 3, 5, 8]), decades=decades)
def test_agreeing_gradients_are_left_alone(method, seed, k, decades):
    g = draw(seed, k, decades=decades).abs()
    assert (method(gram(g)) == 1).all()
    wanted = [0.5 * (i + 1) for i in range(k)]
    at_most((method(gram(g), preference=wanted) - torch.tensor(wanted)).abs(), 1e-15)


@BOTH
@settings(max_examples=20)
@given(seed=seeds, k=st.sampled_from([2, 3, 5]))
def test_projection_is_idempotent(method, seed, k):
    """An update of the cone, seen as one more gradient, is where it wants to be."""
    g = in_general_position(seed, k)
    d = combine(method(gram(g)), g)
    weights = method(gram(torch.cat([d[:, None], g], 1)), preference=[1.0] + [0.0] * k)
    at_most(lengths(combine(weights, torch.cat([d[:, None], g], 1)) - d), 1e-8 * lengths(g).sum(-1))


@settings(max_examples=20)
@given(seed=seeds, k=some_losses, wanted=preferences)
def test_preferences_add_up_and_scale(seed, k, wanted):
    g = in_general_position(seed, k)
    parts = [realign.upgrad(gram(g), preference=e) for e in units(k)]
    wanted = wanted[:k]
    expected = sum((p * part for p, part in zip(wanted, parts, strict=True)), torch.zeros(len(g), k))
    same_weights(realign.upgrad(gram(g), preference=wanted), expected, g)
    for e, part in zip(units(k), parts, strict=True):
        same_weights(realign.dualproj(gram(g), preference=e), part, g)
    for method in (realign.upgrad, realign.dualproj):
        weights = method(gram(g), preference=torch.tensor(wanted, dtype=torch.float64))
        same_weights(method(gram(g), preference=[7 * p for p in wanted]), 7 * weights, g)


def test_two_losses_by_hand():
    g = torch.tensor([[[2.0, 0.0], [-1.0, 1.0]]])  # g_1 becomes (1, 1), g_2 becomes (0, 1); the sum is (1, 1)
    assert combine(realign.upgrad(gram(g)), g)[0].tolist() == [1, 2]
    assert combine(realign.dualproj(gram(g)), g)[0].tolist() == [1, 1]
    assert combine(realign.upgrad(gram(g), preference=[0.0, 3.0]), g)[0].tolist() == [0, 3]


@BOTH
def test_eight_losses_in_rounds_of_conflict(method):
    """Gradients around a circle, each against the opposite: nothing but zero serves them all."""
    angle = torch.arange(8, dtype=torch.float64) * torch.pi / 4
    g = torch.stack([angle.cos(), angle.sin()], -1)[None]
    at_most(lengths(combine(method(gram(g)), g)), 1e-9)


@pytest.mark.parametrize(
    "method", [realign.upgrad, realign.dualproj, realign.cagrad, realign.aligned_mtl, realign.config]
)
@pytest.mark.parametrize(
    ("preference", "message"),
    [
        ([1.0, 1.0], "preference has 2 entries, the Gram blocks are of 3 losses"),
        (torch.ones(4), "preference has 4 entries"),
        ([1.0, 1.0, -0.5], "at least 0 and finite"),
        ([1.0, 1.0, float("nan")], "at least 0 and finite"),
        ([1.0, 1.0, float("inf")], "at least 0 and finite"),
    ],
)
def test_preferences_that_do_not_fit_are_errors(method, preference, message):
    with pytest.raises(ValueError, match=message):
        method(torch.eye(3)[None], preference=preference)


@pytest.mark.parametrize(
    "method", [realign.upgrad, realign.dualproj, realign.aligned_mtl, partial(realign.cagrad, c=0.0)]
)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_preferences_of_orthogonal_gradients_of_equal_length_are_the_weights(method, k):
    wanted = [0.5, 0.0, 2.0][:k]
    weights = method(torch.eye(k, dtype=torch.float64).expand(2, k, k), preference=wanted)
    at_most((weights - torch.tensor(wanted)).abs(), 1e-12)
