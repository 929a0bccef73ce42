"""PCGrad and GradVac against plain loops over explicit vectors."""

import io
import itertools
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from harmony import realign, schedule
from tests.harmony.realign.gradients import (
    at_most,
    combine,
    decades,
    dimensions,
    draw,
    gram,
    inner,
    lengths,
    seeds,
    some_losses,
    spreads,
    unit,
)


def project(v, normals):
    """PCGrad's inner loop: remove from v (B, D) its component along each original gradient that it conflicts with."""
    for normal in normals:
        along = (v * unit(normal)).sum(-1, keepdim=True)
        v = torch.where(along < 0, v - along * unit(normal), v)
    return v


def projected(g, i, order):
    """Gradient i after projection against the others in some order, (B, D)."""
    return project(g[:, i], [g[:, l] for l in order if l != i])


def same_update(weights, expected, g, tolerance=1e-9):
    at_most((combine(weights, g) - expected).norm(dim=-1), tolerance * lengths(g).amax(-1))


@settings(max_examples=30)
@given(seed=seeds, k=some_losses, dimension=dimensions, decades=decades, spread=spreads, data=st.data())
def test_weights_are_those_of_sequential_projection_in_any_order(seed, k, dimension, decades, spread, data):
    g = draw(seed, k, dimension, decades, spread)
    order = data.draw(st.permutations(range(k)))
    expected = sum(projected(g, i, order) for i in range(k))
    same_update(realign.pcgrad(gram(g), order=order), expected, g)
    expected = sum(projected(g, i, range(k)) for i in range(k))
    same_update(realign.pcgrad(gram(g)), expected, g)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 6])
def test_the_mean_is_over_all_orders(k):
    g = draw(k, k, size=8)
    orders = list(itertools.permutations(range(k)))
    expected = sum(projected(g, i, order) for order in orders for i in range(k)) / len(orders)
    same_update(realign.pcgrad(gram(g), order="mean"), expected, g)


def test_orders_that_do_not_fit_are_errors():
    blocks = torch.eye(3)[None]
    for order in ([0, 1], [0, 1, 1], [1, 2, 3], []):
        with pytest.raises(ValueError, match="each of the 3 losses once"):
            realign.pcgrad(blocks, order=order)
    with pytest.raises(ValueError, match="at most 6 losses; got 7"):
        realign.pcgrad(torch.eye(7)[None], order="mean")


@settings(max_examples=25)
@given(seed=seeds, dimension=dimensions, decades=decades, spread=spreads)
def test_two_losses_never_conflict_with_the_update(seed, dimension, decades, spread):
    g = draw(seed, 2, dimension, decades, spread)
    d = combine(realign.pcgrad(gram(g)), g)
    at_most(-inner(d, g), 1e-12 * lengths(g) * lengths(g).amax(-1, keepdim=True))


@settings(max_examples=25)
@given(seed=seeds, dimension=dimensions, decades=decades, spread=spreads)
def test_a_projected_gradient_is_orthogonal_never_longer_and_stays(seed, dimension, decades, spread):
    """For K = 2 the weights split: the first gradient's projection is g_1 + (W_2 - 1) g_2."""
    g = draw(seed, 2, dimension, decades, spread)
    other, weights = g.flip(1), realign.pcgrad(gram(g))
    found = g + (weights.flip(1) - 1)[..., None] * other
    conflict = (g * other).sum(-1) < 0
    rounding = 1e-14 * (lengths(g) + lengths(other))  # W_2 - 1 has lost the digits of a small g_1
    at_most((found * other).sum(-1)[conflict].abs(), (rounding * lengths(other))[conflict])
    at_most(lengths(found), lengths(g) + rounding)
    assert torch.equal(found[~conflict], g[~conflict])
    for i in range(2):  # once more, against the same original: nothing changes
        again = torch.stack([found[:, i], other[:, i]], 1)
        moved = (realign.pcgrad(gram(again))[:, 1] - 1)[:, None] * other[:, i]
        at_most(moved.norm(dim=-1), rounding[:, i])


@settings(max_examples=25)
@given(seed=seeds, dimension=dimensions, decades=decades)
def test_agreeing_gradients_are_left_alone_and_order_does_not_matter_for_two(seed, dimension, decades):
    g = draw(seed, 2, dimension, decades)
    weights = realign.pcgrad(gram(g))
    agree = inner(g[:, 0], g[:, 1:])[:, 0] >= 0
    assert (weights[agree] == 1).all() and (weights[~agree] > 1).all()
    assert torch.equal(realign.pcgrad(gram(g.flip(1))), weights.flip(1))
    assert torch.equal(realign.pcgrad(gram(g), order=[1, 0]), weights)


def against_all(k, size):
    """One block (size, K, K) of gradients whose projections depend on their orders, and all K (K - 1)! of these."""
    g = draw(3, k, 8, size=500, decades=1.0)
    conflicts = (gram(g) < 0).sum((1, 2)) == k * (k - 1)  # all pairs
    g = g[conflicts][:1]
    orders = list(itertools.permutations(range(k - 1)))
    others = [[l for l in range(k) if l != i] for i in range(k)]
    results = [torch.cat([projected(g, i, [others[i][p] for p in order]) for order in orders]) for i in range(k)]
    sums = results[0]
    for result in results[1:]:
        sums = (sums[:, None] + result).flatten(0, 1)
    return g.expand(size, -1, -1), sums


distances = partial(torch.cdist, compute_mode="donot_use_mm_for_euclid_dist")


@pytest.mark.parametrize(("k", "size"), [(3, 4000), (4, 26000)])
def test_random_orders_are_orders_and_equally_frequent(k, size):
    """Every gradient of every sample has an order of its own: (K - 1)!^K combinations."""
    g, sums = against_all(k, size)
    assert len(sums) == math.factorial(k - 1) ** k
    apart = distances(sums, sums) + torch.eye(len(sums), dtype=sums.dtype)
    assert apart.amin() > 1e-6  # no two combinations give the same update
    method = realign.pcgrad_random(seed=1)
    weights, _ = method.update(gram(g), method.init())
    distance, which = distances(combine(weights, g), sums).min(-1)
    at_most(distance, 1e-9)
    counts = which.bincount(minlength=len(sums))
    expected, cells = size / len(sums), len(sums) - 1
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_squared - cells) < 4 * math.sqrt(2 * cells)


def test_random_orders_come_from_the_seed_and_the_step():
    g, _ = against_all(3, 64)

    def steps(seed, n=3):
        method, found = realign.pcgrad_random(seed), []
        state = method.init()
        for _ in range(n):
            weights, state = method.update(gram(g), state)
            found.append(weights)
        assert int(state.step) == n
        return torch.stack(found)

    first, second = steps(0), steps(1)
    assert torch.equal(first, steps(0))
    different = [(a != b).any(-1).double().mean() for a, b in itertools.combinations([*first, *second], 2)]
    assert min(different) > 0.5  # of the samples; 7 in 8 are expected


def towards(v, other, cosine):
    """Move v (B, D) along ``other`` until their cosine is as wanted: keep what is orthogonal, rebuild the rest."""
    across = v - (v * unit(other)).sum(-1, keepdim=True) * unit(other)
    return across + across.norm(dim=-1, keepdim=True) * cosine / (1 - cosine**2) ** 0.5 * unit(other)


def cosine(a, b):
    return (unit(a) * unit(b)).sum(-1)


def vaccinated(g, target):
    """One step of GradVac: the moved gradients (B, K, D) and the cosines (B, K, K) that were seen on the way."""
    k = g.shape[1]
    moved, seen = [], torch.zeros(len(g), k, k, dtype=torch.float64)
    for i in range(k):
        v = g[:, i]
        for j in range(k):
            if j != i:
                seen[:, i, j] = cosine(v, g[:, j])
                v = torch.where(seen[:, i, j, None] < target[i][j], towards(v, g[:, j], float(target[i][j])), v)
        moved.append(v)
    return torch.stack(moved, 1), seen


@settings(max_examples=30)
@given(seed=seeds, k=some_losses, dimension=dimensions, decades=decades, spread=spreads, target=st.floats(-0.95, 0.95))
def test_gradvac_moves_one_gradient_after_another_to_the_target(seed, k, dimension, decades, spread, target):
    g = draw(seed, k, dimension, decades, spread)
    method = realign.gradvac(target=target)
    weights, _ = method.update(gram(g), method.init())
    expected = vaccinated(g, [[target] * k] * k)[0].sum(1)
    # Of parallel gradients the Gram knows the sine only to the square root of the rounding error.
    same_update(weights, expected, g, 1e-9 if spread == 1 and dimension > k else 1e-6)


@settings(max_examples=30)
@given(seed=seeds, decades=decades, target=st.floats(-0.95, 0.95))
def test_gradvac_of_two_reaches_the_target_where_it_was_missed(seed, decades, target):
    g = draw(seed, 2, decades=decades)
    method = realign.gradvac(target=target)
    weights, _ = method.update(gram(g), method.init())
    other = g.flip(1)
    moved = g + (weights.flip(1) - 1)[..., None] * other  # g_1' = g_1 + (W_2 - 1) g_2
    before, after = cosine(g, other), cosine(moved, other)
    small = lengths(g) < 1e-3 * lengths(other)  # the weights near 1 lose its digits
    assert torch.equal(moved[before > target + 1e-6], g[before > target + 1e-6])
    at_most((after - target).abs()[(before < target - 1e-6) & ~small], 1e-9)


@settings(max_examples=30)
@given(seed=seeds, k=some_losses, dimension=dimensions, decades=decades)
def test_gradvac_at_target_zero_is_sequential_projection(seed, k, dimension, decades):
    g = draw(seed, k, dimension, decades)
    method = realign.gradvac(target=0.0)
    weights, _ = method.update(gram(g), method.init())
    same_update(weights, sum(projected(g, i, range(k)) for i in range(k)), g, 1e-9 if dimension > k else 1e-6)


@settings(max_examples=15)
@given(seed=seeds, k=st.integers(2, 4), decay=st.sampled_from([0.0, 0.7, 0.99]))
def test_gradvac_averages_the_cosines_it_has_seen(seed, k, decay):
    method = realign.gradvac(decay=decay)
    state, target, largest = method.init(), torch.zeros(k, k, dtype=torch.float64), 0.0
    off_diagonal = ~torch.eye(k, dtype=torch.bool)
    for step in range(6):
        g = (draw(seed + step, k, decades=0.0) + 0.5) * lengths(draw(seed, k))[..., None]  # they agree on the whole
        weights, state = method.update(gram(g), state)
        moved, seen = vaccinated(g, target)
        same_update(weights, moved.sum(1), g, 1e-5)  # the state is float32
        target = decay * target + (1 - decay) * seen.mean(0)
        assert int(state.step) == step + 1
        at_most((state.memory.double() - target)[off_diagonal].abs(), 1e-5)
        largest = max(largest, float(target[off_diagonal].abs().amax()))
    assert largest > 0.1 * (1 - decay)  # or nothing was tested


def test_gradvac_averages_over_samples_that_have_both_gradients():
    g = torch.tensor([[[1.0, 0.0], [3.0, 4.0]], [[1.0, 0.0], [0.0, 0.0]]])
    method = realign.gradvac(decay=0.5)
    _, state = method.update(gram(g), method.init())
    assert state.memory[0, 1] == state.memory[1, 0] == pytest.approx(0.3)
    g[0, 1] = 0  # no sample is left
    weights, after = method.update(gram(g), state)
    assert after.memory[0, 1] == state.memory[0, 1] and weights.tolist() == [[1, 1], [1, 1]]


def test_gradvac_follows_a_schedule():
    method, state = realign.gradvac(target=schedule.linear(0.0, 0.8, steps=2)), None
    for wanted in (0.0, 0.4, 0.8, 0.8):
        weights, state = method.update(torch.eye(2)[None], state or method.init())
        # Orthogonal unit gradients: each gains the tangent of the angle between the normal and the wanted direction.
        assert weights[0].tolist() == pytest.approx([1 + wanted / (1 - wanted**2) ** 0.5] * 2)


def same_tensors(a, b):
    return all(torch.equal(x, y) for x, y in zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True))


@pytest.mark.parametrize("make", [realign.gradvac, realign.pcgrad_random, realign.random])
def test_states_survive_a_checkpoint(make):
    method, blocks = make(), gram(draw(0, 3))
    _, state = method.update(blocks, method.init())
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file)
    for _ in range(3):
        weights, state = method.update(blocks, state)
        resumed, loaded = method.update(blocks, loaded)
        assert torch.equal(weights, resumed)
        assert same_tensors(state, loaded)


def test_updates_do_not_change_the_state_they_are_given():
    for method in (realign.gradvac(), realign.pcgrad_random()):
        _, state = method.update(gram(draw(0, 3)), method.init())
        before = pytree.tree_map(torch.clone, state)
        method.update(gram(draw(1, 3)), state)
        assert same_tensors(before, state)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"target": 1.0}, "the target cosine must be above -1 and below 1"),
        ({"target": -1}, "the target cosine must be above -1 and below 1"),
        ({"decay": 1.0}, "decay must be at least 0 and below 1; got 1.0"),
        ({"decay": -0.1}, "decay must be at least 0 and below 1"),
    ],
)
def test_gradvac_says_what_is_wrong(keywords, message):
    with pytest.raises(ValueError, match=message):
        realign.gradvac(**keywords)
