"""Properties of the projection, with explicit vectors behind every Gram block."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import harmony

seeds = st.integers(0, 100_000)


def vectors(seed, k=2, dimension=4, size=8):
    """Gradients (B, K, D) with norms over several orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(size, k, dimension, dtype=torch.float64, generator=generator)
    return g * 10 ** (4 * torch.rand(size, k, 1, dtype=torch.float64, generator=generator) - 2)


def project(g, others):
    """PCGrad's inner loop on explicit vectors: remove from g its component along each original it conflicts with."""
    for other in others:
        if g @ other < 0:
            g = g - (g @ other) / (other @ other) * other
    return g


@given(seed=seeds, k=st.integers(1, 4))
def test_weights_are_those_of_sequential_projection(seed, k):
    g = vectors(seed, k)
    weights = harmony.realign.pcgrad(g @ g.mT)
    for b in range(len(g)):
        expected = sum(project(g[b, i], [g[b, j] for j in range(k) if j != i]) for i in range(k))
        torch.testing.assert_close(weights[b] @ g[b], expected)


@given(seed=seeds)
def test_two_losses_never_conflict_with_the_update(seed):
    g = vectors(seed)
    update = torch.einsum("bk,bkd->bd", harmony.realign.pcgrad(g @ g.mT), g)
    products = torch.einsum("bd,bkd->bk", update, g)
    assert (products >= -1e-9 * g.norm(dim=-1) * update.norm(dim=-1, keepdim=True)).all()


@given(seed=seeds)
def test_a_projected_gradient_is_orthogonal_shorter_and_stays(seed):
    """For K = 2 the weights split: the first gradient's projection is g_1 + (W_2 - 1) g_2."""
    g = vectors(seed)
    weights = harmony.realign.pcgrad(g @ g.mT)
    projected = g + (weights.flip(1) - 1)[..., None] * g.flip(1)
    conflict = (g[:, 0] * g[:, 1]).sum(-1) < 0
    scale = projected.norm(dim=-1) * g.flip(1).norm(dim=-1)
    assert ((projected * g.flip(1)).sum(-1).abs() <= 1e-12 * (scale + g.pow(2).sum((-1, -2), keepdim=True)[..., 0]))[
        conflict
    ].all()
    assert (projected.norm(dim=-1) <= g.norm(dim=-1) * (1 + 1e-12)).all()
    torch.testing.assert_close(projected[~conflict], g[~conflict])


@given(seed=seeds)
def test_agreeing_gradients_are_left_alone_and_order_does_not_matter_for_two(seed):
    g = vectors(seed)
    weights = harmony.realign.pcgrad(g @ g.mT)
    agree = (g[:, 0] * g[:, 1]).sum(-1) >= 0
    assert (weights[agree] == 1).all()
    swapped = g.flip(1)
    torch.testing.assert_close(harmony.realign.pcgrad(swapped @ swapped.mT), weights.flip(1))


def test_zero_and_opposite_gradients():
    g = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [-2.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    weights = harmony.realign.pcgrad(g @ g.mT)
    assert weights.isfinite().all()
    assert weights[0].tolist() == [1, 1] and weights[2].tolist() == [1, 1]
    assert torch.einsum("k,kd->d", weights[1], g[1]).abs().max() == 0  # opposite gradients leave nothing


def test_wrong_shape_is_an_error():
    with pytest.raises(ValueError, match=r"\(B, K, K\); got \(2, 2\)"):
        harmony.realign.pcgrad(torch.eye(2))


def test_input_is_not_changed_and_compiles_without_a_break():
    g = vectors(0)
    gram = g @ g.mT
    before = gram.clone()
    compiled = torch.compile(harmony.realign.pcgrad, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(gram), harmony.realign.pcgrad(gram))
    assert torch.equal(gram, before)


def test_autocast_does_not_coarsen_the_weights():
    g = vectors(1, k=3).float()
    gram = g @ g.mT
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = harmony.realign.pcgrad(gram)
    assert torch.equal(inside, harmony.realign.pcgrad(gram))
