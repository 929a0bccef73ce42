"""Explicit gradients behind Gram blocks, and the few things that all tests of realignments need."""

import itertools
from functools import partial

import torch
from hypothesis import strategies as st

from harmony import Transform, realign

SIZE = 16

seeds = st.integers(0, 2**31 - 1)
some_losses = st.integers(1, 6)
dimensions = st.integers(1, 8)  # fewer than losses: linearly dependent gradients; 1: all on one line
decades = st.sampled_from([0.0, 4.0, 10.0])
spreads = st.sampled_from([1.0, 1.0, 1e-1, 1e-4])  # below 1: nearly parallel, some of them nearly opposite


def draw(seed, k, dimension=None, decades=2.0, spread=1.0, size=SIZE):
    """Gradients (B, K, D), their norms spread over some decades; linearly independent if no dimension is given."""
    dimension = k + 2 if dimension is None else dimension
    generator = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, dtype=torch.float64, generator=generator)
    common, signs = normal(size, 1, dimension), normal(size, k, 1).sign()
    g = normal(size, k, dimension) if spread == 1 else signs * (common + spread * normal(size, k, dimension))
    return g * 10 ** (decades * (torch.rand(size, k, 1, dtype=torch.float64, generator=generator) - 0.5))


def loose(spread):
    """Relative tolerance for dependent gradients: the methods add 1e-12 to the diagonal of the cosines."""
    return 1e-7 if spread > 1e-2 else 1e-5


def well_conditioned(g, limit=30.0):
    """The samples of which the unit gradients are far from linearly dependent."""
    values = torch.linalg.svdvals(unit(g))
    return g[values[:, 0] < limit * values[:, -1]] if g.shape[1] <= g.shape[2] else g[:0]


def in_general_position(seed, k, decades=2.0, size=SIZE):
    """Well-conditioned gradients (B', K, D); the conflicts are as strong as their number allows."""
    return well_conditioned(draw(seed, k, decades=decades, size=size))


def gram(g):
    return g @ g.mT


def lengths(g):
    return g.norm(dim=-1)


def unit(g):
    length = lengths(g)[..., None]
    return torch.where(length > 0, g / length, 0)


def combine(weights, g):
    """The update (B, D) that weights (B, K) make of gradients (B, K, D)."""
    return (weights[..., None] * g).sum(-2)


def inner(d, g):
    """Inner products (B, K) of updates (B, D) with gradients (B, K, D)."""
    return (d[..., None, :] * g).sum(-1)


def at_most(values, bound):
    """Assert values <= bound, entry by entry, and none of them NaN."""
    bound = torch.as_tensor(bound, dtype=values.dtype).expand_as(values)
    wrong = ~(values <= bound)
    if wrong.any():
        raise AssertionError(
            f"{int(wrong.sum())} of {wrong.numel()} values too large, as {float(values[wrong][0]):.3g} "
            f"above {float(bound[wrong][0]):.3g}, at {wrong.nonzero()[0].tolist()}"
        )


def same_weights(weights, expected, g, tolerance=1e-9):
    """Assert that weights (B, K) are the expected, where a weight counts by the length of what it multiplies."""
    length = lengths(g)
    scale = torch.maximum(length.amax(-1, keepdim=True), (expected.abs() * length).amax(-1, keepdim=True))
    at_most((weights - expected).abs() * length, tolerance * scale)


def simplex(g, n=500, seed=0):
    """Points (n, K) of the simplex: its corners, its centre, and random ones, also near its faces."""
    k = g.shape[1]
    drawn = torch.distributions.Dirichlet(torch.full((k,), 0.5, dtype=torch.float64))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        points = drawn.sample((n,))
    eye = torch.eye(k, dtype=torch.float64)
    return torch.cat([eye, eye.mean(0, keepdim=True), points])


def supports(k):
    """All subsets of K losses."""
    return [s for r in range(k + 1) for s in itertools.combinations(range(k), r)]


def from_start(transform: Transform):
    """The first update of a transform, as a function of Gram blocks."""

    def function(gram):
        return transform.update(gram, transform.init())[0]

    return function


STATELESS = {
    "summed": realign.summed,
    "mean": realign.mean,
    "normalized": realign.normalized,
    "pcgrad": realign.pcgrad,
    "pcgrad, mean": partial(realign.pcgrad, order="mean"),
    "upgrad": realign.upgrad,
    "dualproj": realign.dualproj,
    "mgda": realign.mgda,
    "cagrad": realign.cagrad,
    "imtl_g": realign.imtl_g,
    "nash_mtl": realign.nash_mtl,
    "fairgrad": realign.fairgrad,
    "aligned_mtl": realign.aligned_mtl,
    "config": realign.config,
}
TRANSFORMS = {
    "gradvac": realign.gradvac(),
    "gradvac, target": realign.gradvac(target=0.3),
    "pcgrad_random": realign.pcgrad_random(seed=5),
    "random": realign.random(seed=5),
}
METHODS = STATELESS | {name: from_start(transform) for name, transform in TRANSFORMS.items()}
