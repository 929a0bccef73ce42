"""MGDA and CAGrad: a variational inequality, and bounds from both sides of a max-min problem."""

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
    loose,
    same_weights,
    seeds,
    simplex,
    spreads,
    unit,
)

some_losses = st.sampled_from([1, 2, 3, 4, 5, 6, 8])
several = st.sampled_from([2, 3, 4, 5, 6, 8])


@settings(max_examples=30)
@given(seed=seeds, k=some_losses, dimension=dimensions, decades=decades, spread=spreads)
def test_mgda_is_the_shortest_convex_combination(seed, k, dimension, decades, spread):
    """d is the shortest point of a convex set exactly if <g, d> >= |d|^2 for all its corners g."""
    g = draw(seed, k, dimension, decades, spread)
    weights = realign.mgda(gram(g))
    at_most((weights.sum(-1) - 1).abs(), 1e-12)
    at_most(-weights, 0)
    d, shortest = combine(weights, g), lengths(g).amin(-1, keepdim=True)
    at_most(lengths(d), shortest[:, 0] * (1 + 1e-12))
    # The rounding of the Gram shows in what is left of d where it vanishes.
    at_most(lengths(d)[:, None] ** 2 - inner(d, g), loose(spread) * lengths(g) * shortest)


@settings(max_examples=25)
@given(seed=seeds, k=st.sampled_from([2, 3, 4, 6]), decades=decades)
def test_mgda_in_general_position(seed, k, decades):
    g = in_general_position(seed, k, decades)
    d = combine(realign.mgda(gram(g)), g)
    at_most(lengths(d)[:, None] ** 2 - inner(d, g), 1e-9 * lengths(g) * lengths(d)[:, None])
    brute = (simplex(g) @ g).norm(dim=-1).amin(-1)
    at_most(lengths(d), brute * (1 + 1e-9))


def test_mgda_of_two_on_a_fine_grid():
    g = draw(0, 2, size=200)
    t = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    g1, g2 = g.unbind(1)
    squared = [g1.pow(2).sum(-1), (g1 * g2).sum(-1), g2.pow(2).sum(-1)]
    weights = realign.mgda(gram(g))
    for b in range(len(g)):
        a, c, e = (s[b] for s in squared)
        best = t[(t**2 * a + 2 * t * (1 - t) * c + (1 - t) ** 2 * e).argmin()]
        assert abs(weights[b, 0] - best) <= 1e-5


@pytest.mark.parametrize("k", [2, 3, 5])
def test_mgda_of_stationary_gradients_is_zero(k):
    """The last gradient opposes a positive combination of the others."""
    g = draw(k, k, decades=1.0)
    mix = torch.rand(len(g), k - 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    g[:, -1] = -combine(mix, g[:, :-1])
    weights = realign.mgda(gram(g))
    at_most(lengths(combine(weights, g)), 1e-9 * lengths(g).amax(-1))
    expected = torch.cat([mix, torch.ones(len(g), 1, dtype=torch.float64)], 1)
    same_weights(weights, expected / expected.sum(-1, keepdim=True), g, 1e-7)


def worst(d, g):
    return inner(d, g).amin(-1)


def bound(w, total, g, c):
    """No d with |d - g_0| <= c |g_0| serves its worst-off loss better, for whatever w of the simplex (B, n, K)."""
    mixed = w @ g  # (B, n, D)
    return inner(total, mixed) + c * lengths(total)[:, None] * mixed.norm(dim=-1)


def certificate(weights, wanted, g):
    """The point of the simplex (B, 1, K) that a solution stands for: d - g_0 is a multiple of that combination."""
    added = (weights - wanted).clamp(min=0)
    return (added / added.sum(-1, keepdim=True))[:, None]


radii = st.sampled_from([0.1, 0.4, 0.5, 0.9, 0.99])


@settings(max_examples=30)
@given(seed=seeds, k=several, decades=st.sampled_from([0.0, 2.0, 6.0]), c=radii)
def test_cagrad_serves_the_worst_off_loss_best(seed, k, decades, c):
    g = in_general_position(seed, k, decades)
    weights, total = realign.cagrad(gram(g), c=c), g.sum(1)
    d = combine(weights, g)
    at_most(lengths(d - total), c * lengths(total) * (1 + 1e-9))
    at_most(-(weights - 1) * lengths(g), 1e-10 * lengths(g).amax(-1, keepdim=True))
    scale = lengths(total) * (lengths(g).amin(-1) + 1e-4 * lengths(g).amax(-1))
    above = torch.cat([bound(certificate(weights, 1.0, g), total, g, c), bound(simplex(g), total, g, c)], 1)
    at_most(above.amin(-1) - worst(d, g), 1e-8 * scale)
    at_most(worst(d, g) - above.amin(-1), 1e-8 * scale)  # or the bound is wrong


@settings(max_examples=30)
@given(seed=seeds, k=several, dimension=dimensions, decades=st.sampled_from([0.0, 4.0]), spread=spreads, c=radii)
def test_cagrad_of_dependent_gradients(seed, k, dimension, decades, spread, c):
    """Where zero is a convex combination, no update serves every loss: the bound is zero, and must be reached."""
    g = draw(seed, k, dimension, decades, spread)
    weights, total = realign.cagrad(gram(g), c=c), g.sum(1)
    d = combine(weights, g)
    at_most(lengths(d - total), c * lengths(total) + 1e-7 * lengths(g).sum(-1))
    shortest = certificate(1 + realign.mgda(gram(g)), 1.0, g)
    above = torch.cat([bound(w, total, g, c) for w in (certificate(weights, 1.0, g), shortest, simplex(g))], 1)
    # a worst case is known to the root of the rounding error, where |g_w| comes near to zero
    at_most(above.nan_to_num(nan=torch.inf).amin(-1) - worst(d, g), 1e-4 * lengths(g).sum(-1) * lengths(g).amax(-1))


@settings(max_examples=20)
@given(seed=seeds, c=radii)
def test_cagrad_of_two_on_a_fine_grid(seed, c):
    """All that matters of d lies in the plane of the two gradients, and on the rim of the disc or on its inside."""
    g = draw(seed, 2, 2, decades=1.0, size=6)
    total = g.sum(1)
    angle = torch.linspace(0, 2 * torch.pi, 20_001, dtype=torch.float64)
    rim = torch.stack([angle.cos(), angle.sin()], -1)
    reached = worst(combine(realign.cagrad(gram(g), c=c), g), g)
    for b in range(len(g)):
        tried = total[b] + c * total[b].norm() * rim
        best = (tried @ g[b].mT).amin(-1).max()
        assert abs(best - reached[b]) <= 1e-3 * total[b].norm() * lengths(g)[b].amax()
        assert best <= reached[b] + 1e-9 * total[b].norm() * lengths(g)[b].amax()


@settings(max_examples=20)
@given(seed=seeds, k=st.sampled_from([2, 3, 5]), c=radii, data=st.data())
def test_cagrad_with_a_preference(seed, k, c, data):
    wanted = data.draw(st.lists(st.sampled_from([0.0, 0.2, 1.0, 5.0]), min_size=k, max_size=k).filter(any))
    g = in_general_position(seed, k)
    weights = realign.cagrad(gram(g), c=c, preference=wanted)
    total, d = combine(torch.tensor(wanted, dtype=torch.float64), g), combine(weights, g)
    at_most(lengths(d - total), c * lengths(total) * (1 + 1e-9))
    above = bound(certificate(weights, torch.tensor(wanted), g), total, g, c)[:, 0]
    at_most(above - worst(d, g), 1e-7 * lengths(total) * lengths(g).amin(-1))
    doubled = realign.cagrad(gram(g), c=c, preference=[2 * p for p in wanted])
    same_weights(doubled, 2 * weights, g, 1e-7)


@settings(max_examples=10)
@given(seed=seeds, k=some_losses)
def test_cagrad_without_radius_is_the_preferred_sum(seed, k):
    g = draw(seed, k)
    assert (realign.cagrad(gram(g), c=0.0) == 1).all()
    wanted = [0.5 + i for i in range(k)]
    assert (realign.cagrad(gram(g), c=0.0, preference=wanted) == torch.tensor(wanted)).all()


def test_cagrad_by_hand():
    """g_0 = (1, 1) and a radius of half its length, all of it along the gradient that g_0 serves least."""
    g = torch.tensor([[[3.0, -1.0], [-2.0, 2.0]]], dtype=torch.float64)
    assert g[0, 1] @ g.sum(1)[0] == 0 and g[0, 0] @ g.sum(1)[0] == 2
    d = combine(realign.cagrad(gram(g), c=0.1), g)[0]
    torch.testing.assert_close(d, torch.tensor([1 - 0.1, 1 + 0.1], dtype=torch.float64))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_cagrad_leaves_a_lone_gradient_alone(k):
    """There is no other loss to serve: its best worst case would be itself, only longer."""
    g = draw(0, k)
    g[:, 1:] = 0
    assert (realign.cagrad(gram(g), c=0.5) == 1).all()
    wanted = [2.0, 3.0, 4.0][:k]
    assert (realign.cagrad(gram(g), c=0.5, preference=wanted) == torch.tensor(wanted)).all()


@pytest.mark.parametrize("c", [-0.1, 1.0, 2.0, float("nan")])
def test_cagrad_refuses_other_radii(c):
    with pytest.raises(ValueError, match="c must be at least 0 and below 1"):
        realign.cagrad(torch.eye(2)[None], c=c)


def test_stationary_samples_have_unit_gradients_that_cancel():
    g = torch.tensor([[[1.0, 0.0], [-3.0, 0.0]]], dtype=torch.float64)
    assert realign.mgda(gram(g))[0].tolist() == [0.75, 0.25]
    assert unit(g).sum() == 0
    d = combine(realign.cagrad(gram(g), c=0.5), g)[0]  # g_0 = (-2, 0): as much against the longer as is allowed
    assert d.tolist() == [-1, 0]
