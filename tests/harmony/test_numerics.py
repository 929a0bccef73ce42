"""The small dense problems against torch.linalg and brute force, and the random numbers against statistics."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harmony.numerics.complementarity import nonnegative_minimum
from harmony.numerics.counter import mix, normal, uniform
from harmony.numerics.eigen import eigh, pseudo_inverse_times
from harmony.numerics.elimination import solve
from harmony.numerics.unit import unit_blocks

N = 12
CPU = torch.device("cpu")

seeds = st.integers(0, 2**31 - 1)
sizes = st.sampled_from([1, 2, 3, 4, 5, 6, 8, 10])
conditions = st.sampled_from([1.0, 1e2, 1e4, 1e8])


def drawn(seed, *shape, n=N):
    return torch.randn(n, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def definite(seed, k, condition, n=N):
    """Symmetric matrices (N, K, K) with eigenvalues from 1 down to 1 / condition, in random directions."""
    q = torch.linalg.qr(drawn(seed, k, k, n=n)).Q
    return (q * torch.logspace(0, -math.log10(condition), k, dtype=torch.float64)) @ q.mT


def correlations(seed, k, condition, n=N):
    """The same with a diagonal of ones."""
    matrix = definite(seed, k, condition, n)
    scale = matrix.diagonal(dim1=1, dim2=2).rsqrt()
    return matrix * scale[:, :, None] * scale[:, None, :]


def times(matrix, x):
    return (matrix @ x[..., None])[..., 0]


# Linear systems


@settings(max_examples=30)
@given(seed=seeds, k=sizes, condition=conditions, scale=st.sampled_from([1e-6, 1.0, 1e6, 1e20]))
def test_solve(seed, k, condition, scale):
    matrix, right = definite(seed, k, condition) * scale, drawn(seed + 1, k)
    x, expected = solve(matrix, right), torch.linalg.solve(matrix, right)
    size = expected.norm(dim=-1)
    assert ((x - expected).norm(dim=-1) <= 1e-13 * condition * size).all()
    assert ((times(matrix, x) - right).norm(dim=-1) <= 1e-13 * scale * x.norm(dim=-1) + 1e-13).all()


def test_solve_keeps_the_digits_of_rows_of_very_different_sizes():
    diagonal = torch.tensor([[1e17, 1.0, 1e-12, 1e8, 1e30]], dtype=torch.float64)
    x = solve(torch.diag_embed(diagonal), torch.ones_like(diagonal))
    torch.testing.assert_close(x * diagonal, torch.ones_like(diagonal), rtol=1e-14, atol=0)


def test_solve_of_what_is_not_definite_is_finite():
    for matrix in (
        [[0.0, 0.0], [0.0, 0.0]],
        [[1.0, 1.0], [1.0, 1.0]],
        [[1.0, 2.0], [2.0, 1.0]],
        [[-1.0, 0.0], [0.0, 1.0]],
    ):
        assert (
            solve(torch.tensor([matrix], dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)).isfinite().all()
        )


# Eigenvalues


def check_eigen(matrix, tolerance=1e-13):
    k = matrix.shape[-1]
    values, vectors = eigh(matrix)
    size = matrix.norm(dim=(1, 2))[:, None]
    assert ((values.sort(-1).values - torch.linalg.eigvalsh(matrix)).abs() <= tolerance * size).all()
    assert ((vectors.mT @ vectors - torch.eye(k, dtype=matrix.dtype)).abs() <= 1e-13).all()
    assert ((matrix @ vectors - vectors * values[:, None]).abs().amax((1, 2)) <= tolerance * size[:, 0]).all()


@settings(max_examples=25)
@given(seed=seeds, k=sizes)
def test_eigenvalues_of_symmetric_matrices(seed, k):
    matrix = drawn(seed, k, k)
    check_eigen(matrix + matrix.mT)


@settings(max_examples=25)
@given(seed=seeds, k=sizes, condition=conditions, rank=st.integers(1, 10))
def test_eigenvalues_of_gram_blocks(seed, k, condition, rank):
    check_eigen(correlations(seed, k, condition))
    g = drawn(seed, k, rank) * 10 ** drawn(seed + 1, k, 1)
    check_eigen(g @ g.mT)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 10])
def test_eigenvalues_that_coincide_or_are_zero(k):
    eye = torch.eye(k, dtype=torch.float64)
    ones = torch.ones(k, k, dtype=torch.float64)
    for matrix in (eye, 0 * eye, ones, eye + ones, 3 * eye - ones, 1e-100 * (eye + ones), 1e100 * ones):
        check_eigen(matrix[None])


@settings(max_examples=25)
@given(seed=seeds, k=st.integers(1, 8), rank=st.integers(1, 8))
def test_pseudo_inverse(seed, k, rank):
    g = drawn(seed, k, rank)
    values = torch.linalg.svdvals(g)
    g = g[values[:, -1] > 1e-2 * values[:, 0]]
    matrix, right = g @ g.mT, drawn(seed + 1, k)[: len(g)]
    found = pseudo_inverse_times(matrix, right, 1e-12)
    expected = times(torch.linalg.pinv(matrix, rtol=1e-9, hermitian=True), right)
    assert ((found - expected).norm(dim=-1) <= 1e-9 * expected.norm(dim=-1)).all()


def test_pseudo_inverse_takes_small_eigenvalues_for_zero():
    matrix = torch.diag_embed(torch.tensor([[1.0, 1e-3, 1e-9, 0.0]], dtype=torch.float64))
    right = torch.ones(1, 4, dtype=torch.float64)
    for precision, kept in ((1e-12, [1, 1e3, 1e9, 0]), (1e-6, [1, 1e3, 0, 0]), (1e-2, [1, 0, 0, 0])):
        found = pseudo_inverse_times(matrix, right, precision)
        torch.testing.assert_close(found, torch.tensor([kept], dtype=torch.float64), rtol=1e-12, atol=0)
    assert (pseudo_inverse_times(0 * matrix, right, 1e-6) == 0).all()


# Quadratic programs


def brute_force(matrix, linear):
    """The least value over all supports whose solution is positive."""
    k = linear.shape[-1]
    best, least = torch.zeros_like(linear), torch.zeros(len(linear), dtype=linear.dtype)
    for size in range(1, k + 1):
        for support in itertools.combinations(range(k), size):
            inside = list(support)
            x = torch.zeros_like(linear)
            x[:, inside] = torch.linalg.solve(matrix[:, inside][:, :, inside], linear[:, inside])
            value = (x * times(matrix, x) / 2 - linear * x).sum(-1)
            better = (x >= 0).all(-1) & (value < least)
            best, least = torch.where(better[:, None], x, best), torch.where(better, value, least)
    return best


def meets_the_conditions(x, matrix, linear, tolerance):
    """x >= 0, Hx - q >= 0, and one of them zero: the minimum of a convex function, and no other point."""
    largest = x.abs().amax(-1, keepdim=True)
    rounding = tolerance * torch.maximum(linear.abs().amax(-1, keepdim=True), largest)
    slack = times(matrix, x) - linear
    assert (x >= 0).all()
    assert (slack >= -rounding).all()
    assert ((x * slack).abs() <= rounding * largest).all()


@settings(max_examples=30)
@given(seed=seeds, k=st.integers(1, 5), condition=conditions)
def test_nonnegative_minimum_is_the_best_of_all_supports(seed, k, condition):
    matrix, linear = correlations(seed, k, condition), drawn(seed + 1, k)
    x = nonnegative_minimum(matrix, linear)
    expected = brute_force(matrix, linear)
    assert ((x - expected).norm(dim=-1) <= 1e-12 * condition * expected.norm(dim=-1)).all()
    meets_the_conditions(x, matrix, linear, 1e-12)


@settings(max_examples=30)
@given(seed=seeds, k=st.sampled_from([3, 5, 8, 12]), condition=conditions, push=st.sampled_from([-1.0, 0.0, 1.0]))
def test_nonnegative_minimum_meets_its_conditions(seed, k, condition, push):
    """Also where nearly all variables are positive, or nearly none."""
    matrix, linear = correlations(seed, k, condition), drawn(seed + 1, k) + push
    meets_the_conditions(nonnegative_minimum(matrix, linear), matrix, linear, 1e-12)


@pytest.mark.parametrize("condition", [1e6, 1e8, 1e10])
@pytest.mark.parametrize("n", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("k", [4, 5, 8, 12])
def test_nonnegative_minimum_of_many_ill_conditioned_problems(k, n, condition):
    matrix, linear = correlations(k, k, condition, n=n), drawn(k + 1, k, n=n)
    meets_the_conditions(nonnegative_minimum(matrix, linear), matrix, linear, 1e-12)


@settings(max_examples=30)
@given(seed=seeds, k=st.sampled_from([3, 4, 6, 8]), rank=st.integers(1, 5), scale=st.sampled_from([1e-8, 1.0, 1e8]))
def test_nonnegative_minimum_of_nearly_singular_matrices(seed, k, rank, scale):
    """Cosines of more gradients than dimensions, with the smallest of ridges; q in their span, as it is there."""
    g = torch.nn.functional.normalize(drawn(seed, k, rank), dim=-1)
    matrix = g @ g.mT + 1e-12 * torch.eye(k, dtype=torch.float64)
    linear = scale * times(g, drawn(seed + 1, rank))
    meets_the_conditions(nonnegative_minimum(matrix, linear), matrix, linear, 1e-12)


@pytest.mark.parametrize("k", [2, 3, 5, 8, 10])
def test_nonnegative_minimum_where_pivoting_is_slow(k):
    """Murty's matrices: pivoting on the first violation takes 2^K - 1 exchanges for some q."""
    lower = 2 * torch.tril(torch.ones(k, k, dtype=torch.float64)) - torch.eye(k, dtype=torch.float64)
    matrix = lower @ lower.T
    scale = matrix.diagonal().rsqrt()
    matrix = (matrix * scale[:, None] * scale)[None].expand(N, k, k)
    powers = 2.0 ** torch.arange(k, dtype=torch.float64)
    for linear in (torch.ones(N, k, dtype=torch.float64), (powers * scale).expand(N, k), drawn(k, k), drawn(k, k) + 1):
        meets_the_conditions(nonnegative_minimum(matrix, linear), matrix, linear, 1e-12)


def test_nonnegative_minimum_by_hand():
    matrix = torch.tensor([[1.0, -0.5], [-0.5, 1.0]], dtype=torch.float64).expand(4, 2, 2)
    linear = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [0.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[2.0, 2.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(nonnegative_minimum(matrix, linear), expected)


def test_nonnegative_minimum_of_what_is_not_definite_is_finite():
    for c in (-1.0, 1.0, -0.9):
        matrix = torch.full((1, 4, 4), c, dtype=torch.float64)
        matrix.diagonal(dim1=1, dim2=2).fill_(1.0)
        for linear in (
            torch.ones(1, 4),
            -torch.ones(1, 4),
            torch.tensor([[1.0, -1.0, 0.0, 1e100]], dtype=torch.float64),
        ):
            assert nonnegative_minimum(matrix, linear).isfinite().all()


# Normal form


@settings(max_examples=25)
@given(seed=seeds, k=st.integers(1, 5), exponent=st.floats(-140, 140), dimension=st.integers(1, 6))
def test_unit_blocks_are_cosines_and_relative_norms(seed, k, exponent, dimension):
    g = drawn(seed, k, dimension) * 10**exponent
    blocks, length = unit_blocks(g @ g.mT), g.norm(dim=-1)
    unit = g / length[..., None]
    torch.testing.assert_close(blocks.cosine, unit @ unit.mT, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(blocks.norm * blocks.scale, length, rtol=1e-12, atol=0)
    assert (blocks.norm.amax(-1) == 1).all() and blocks.active.all()


# Random numbers


def step(t):
    return torch.tensor(t)


@pytest.mark.parametrize("seed", [0, 1, 123456789, -5])
def test_uniform_numbers_are_uniform(seed):
    u = uniform(seed, step(3), 500, 200, CPU)
    n = u.numel()
    assert u.shape == (500, 200) and u.dtype == torch.float64
    assert ((u >= 0) & (u < 1)).all() and len(u.unique()) == n
    assert abs(u.mean() - 0.5) < 4 * math.sqrt(1 / 12 / n)
    for cells in (2, 10, 256):
        counts = torch.histc(u, cells, 0, 1)
        chi_squared = ((counts - n / cells) ** 2 / (n / cells)).sum()
        assert abs(chi_squared - (cells - 1)) < 4 * math.sqrt(2 * (cells - 1))
    low = (u * 2**20) % 1  # the low digits
    assert abs(low.mean() - 0.5) < 4 * math.sqrt(1 / 12 / n)


def uncorrelated(a, b):
    n = a.numel()
    for power in (1, 2):  # of the numbers, and of how far they are from the middle
        pair = torch.stack([(a.flatten() - 0.5) ** power, (b.flatten() - 0.5) ** power])
        assert abs(pair.corrcoef()[0, 1]) < 4.5 / math.sqrt(n)


def test_neighbours_are_not_correlated():
    u = uniform(7, step(0), 300, 300, CPU)
    for lag in (1, 2, 3, 8):
        uncorrelated(u[:, lag:], u[:, :-lag])
        uncorrelated(u[lag:], u[:-lag])
    for seed, t in ((7, 1), (8, 0), (6, 1), (7, 300), (0, 7), (-7, 0)):
        uncorrelated(u, uniform(seed, step(t), 300, 300, CPU))


def test_pairs_of_seed_and_step_are_all_different():
    """Not as in seed + step, where the next step of one seed is the first of the next."""
    first = torch.cat([uniform(s, step(t), 1, 1, CPU).flatten() for s in range(-10, 30) for t in range(40)])
    assert len(first.unique()) == 1600
    assert abs(first.mean() - 0.5) < 4 * math.sqrt(1 / 12 / 1600)


def test_the_same_arguments_give_the_same_numbers_and_change_nothing():
    t = step(4)
    state = torch.get_rng_state()
    a, b = uniform(3, t, 20, 5, CPU), uniform(3, t, 20, 5, CPU)
    assert torch.equal(a, b) and t == 4 and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(uniform(3, t, 10, 5, CPU), a[:10])  # a sample's numbers do not depend on those after it
    compiled = torch.compile(uniform, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(3, t, 20, 5, CPU), a)


def test_normal_numbers_are_normal():
    z = normal(1, step(2), 400, 250, CPU)
    n = z.numel()
    assert z.shape == (400, 250) and z.isfinite().all()
    assert abs(z.mean()) < 4 / math.sqrt(n) and abs(z.var() - 1) < 4 * math.sqrt(2 / n)
    ordered = z.flatten().sort().values
    distribution = 0.5 * (1 + torch.erf(ordered / math.sqrt(2)))
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = torch.maximum((steps[1:] - distribution).amax(), (distribution - steps[:-1]).amax())
    assert distance < 1.63 / math.sqrt(n)  # Kolmogorov and Smirnov, 1 in 100; the numbers are always the same


def test_every_bit_changes_half_of_the_bits():
    x = torch.arange(1, 2001) * 0x1234567
    weights = 2 ** torch.arange(62)
    for bit in (0, 1, 17, 40, 62):
        changed = mix(x) ^ mix(x ^ (1 << bit))
        flipped = ((changed[:, None] // weights) % 2).double().mean(0)  # the remainder of a division is that of floor
        assert (flipped - 0.5).abs().amax() < 4.5 * 0.5 / math.sqrt(len(x))
