"""What all realignments have in common, each by one table of all methods."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harmony import chain, realign
from harmony.realign import balance, descent
from tests.harmony.realign.gradients import (
    METHODS,
    STATELESS,
    TRANSFORMS,
    at_most,
    combine,
    decades,
    dimensions,
    draw,
    gram,
    in_general_position,
    lengths,
    same_weights,
    seeds,
    some_losses,
    spreads,
)

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
KEEP_AGREEING = ["summed", "pcgrad", "pcgrad, mean", "upgrad", "dualproj", "gradvac", "pcgrad_random"]
LONG = [("imtl_g", 3), ("config", 3), ("aligned_mtl", 3), ("cagrad", 3)]  # to compile
WITH_PREFERENCE = {
    "upgrad": realign.upgrad,
    "dualproj": realign.dualproj,
    "cagrad": realign.cagrad,
    "aligned_mtl": realign.aligned_mtl,
    "config": realign.config,
}


def every(names, but=()):
    """Parametrize a test by the names of methods."""
    return pytest.mark.parametrize("name", [name for name in names if name not in but])


def test_the_table_has_every_method():
    assert {name.split(",")[0] for name in METHODS} == set(realign.__all__)


@every(METHODS)
def test_wrong_shapes_are_errors(name):
    for wrong in (torch.eye(2), torch.ones(3, 2, 3), torch.ones(1, 1, 2, 2)):
        with pytest.raises(ValueError, match=r"expected Gram blocks of shape \(B, K, K\); got"):
            METHODS[name](wrong)


@every(METHODS)
def test_no_samples_have_no_weights(name):
    for k in (1, 2, 3):
        assert METHODS[name](torch.ones(0, k, k)).shape == (0, k)


# Symmetries


@every(METHODS, but=["pcgrad", "gradvac", "gradvac, target", "pcgrad_random", "random"])
@settings(max_examples=8)
@given(seed=seeds, k=some_losses, data=st.data())
def test_permuted_losses_have_permuted_weights(name, seed, k, data):
    g = in_general_position(seed, k)
    order = data.draw(st.permutations(range(k)))
    same_weights(METHODS[name](gram(g[:, order])), METHODS[name](gram(g))[:, order], g[:, order], 1e-7)


@every(["pcgrad", "gradvac", "gradvac, target", "pcgrad_random"])
@settings(max_examples=8)
@given(seed=seeds)
def test_order_does_not_matter_for_two(name, seed):
    g = in_general_position(seed, 2)
    same_weights(METHODS[name](gram(g.flip(1))), METHODS[name](gram(g)).flip(1), g.flip(1))


EXPONENTS = dict.fromkeys(METHODS, 0.0) | {"normalized": -0.5, "nash_mtl": -0.5, "fairgrad": -2 / 3}


@every(METHODS)
@settings(max_examples=8)
@given(seed=seeds, k=some_losses, exponent=st.floats(-12, 12))
def test_scaled_grams_have_scaled_weights(name, seed, k, exponent):
    """<g_k, d> = W_k^(-1/alpha) for FairGrad: with G -> s G, W -> s^p W both sides agree at p = -alpha/(1+alpha)."""
    g, s = in_general_position(seed, k), 10.0**exponent
    same_weights(METHODS[name](s * gram(g)) / s ** EXPONENTS[name], METHODS[name](gram(g)), g, 1e-7)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 4.0])
def test_fairgrad_scales_by_its_alpha(alpha):
    g = in_general_position(0, 3)
    expected = 100 ** (-alpha / (1 + alpha)) * realign.fairgrad(gram(g), alpha=alpha)
    same_weights(realign.fairgrad(100 * gram(g), alpha=alpha), expected, g, 1e-7)


@every(METHODS)
@settings(max_examples=8)
@given(seed=seeds, k=some_losses)
def test_rotated_gradients_have_the_same_weights(name, seed, k):
    g = in_general_position(seed, k)
    generator = torch.Generator().manual_seed(seed)
    dimension = g.shape[-1] + 3
    rotation = torch.linalg.qr(torch.randn(dimension, dimension, dtype=g.dtype, generator=generator)).Q
    rotated = torch.nn.functional.pad(g, (0, 3)) @ rotation
    same_weights(METHODS[name](gram(rotated)), METHODS[name](gram(g)), g, 1e-7)


# Fixed points and degenerate samples


@every(KEEP_AGREEING)
@settings(max_examples=15)
@given(seed=seeds, k=some_losses, dimension=dimensions, decades=decades)
def test_agreeing_gradients_are_left_alone(name, seed, k, dimension, decades):
    g = draw(seed, k, dimension, decades).abs()
    assert (METHODS[name](gram(g)) == 1).all()


@every(METHODS)
def test_a_single_loss(name):
    length = torch.tensor([1.0, 1e-3, 400.0], dtype=torch.float64)
    expected = {"normalized": 1 / length, "nash_mtl": 1 / length, "fairgrad": length ** (-4 / 3)}
    weights = METHODS[name]((length**2)[:, None, None])
    wanted = expected.get(name, torch.ones_like(length))
    torch.testing.assert_close(weights, wanted[:, None], rtol=1e-7, atol=0)


@every(METHODS, but=["mean", "random", "pcgrad_random"])
@settings(max_examples=8)
@given(seed=seeds, k=st.integers(1, 5), decades=st.sampled_from([0.0, 2.0]), data=st.data())
def test_others_do_not_see_a_zero_gradient(name, seed, k, decades, data):
    """For two losses this compares the closed forms with the general solvers."""
    g = in_general_position(seed, k, decades)
    place = data.draw(st.integers(0, k))
    padded = torch.cat([g[:, :place], torch.zeros_like(g[:, :1]), g[:, place:]], 1)
    weights = METHODS[name](gram(padded))
    assert (weights[:, place] == 1).all()
    others = [i for i in range(k + 1) if i != place]
    same_weights(weights[:, others], METHODS[name](gram(g)), g, 1e-7)


@every(WITH_PREFERENCE)
@settings(max_examples=8)
@given(seed=seeds, k=st.integers(2, 4), place=st.integers(0, 4))
def test_a_zero_gradient_keeps_its_preference(name, seed, k, place):
    g, place = in_general_position(seed, k), min(place, k)
    padded = torch.cat([g[:, :place], torch.zeros_like(g[:, :1]), g[:, place:]], 1)
    wanted = [0.25 * (i + 1) for i in range(k + 1)]
    others = [i for i in range(k + 1) if i != place]
    weights = WITH_PREFERENCE[name](gram(padded), preference=wanted)
    assert (weights[:, place] == wanted[place]).all()
    alone = WITH_PREFERENCE[name](gram(g), preference=[wanted[i] for i in others])
    same_weights(weights[:, others], alone, g, 1e-7)


@every(METHODS, but=["random"])
def test_samples_without_any_gradient(name):
    for k in (1, 2, 3, 5):
        weights = METHODS[name](torch.zeros(4, k, k))
        assert (weights == (torch.tensor(1 / k) if name == "mean" else 1)).all()


LINES = {
    # what the update of (g, g) and of (g, -2 g) is, as a multiple of g
    "summed": (2, -1),
    "mean": (1, -0.5),
    "pcgrad": (2, 0),
    "pcgrad, mean": (2, 0),
    "pcgrad_random": (2, 0),
    "gradvac": (2, 0),
    "upgrad": (2, 0),
    "dualproj": (2, 0),
    "mgda": (1, 0),
    "cagrad": (3, -0.5),  # half of the sum more, or less
    "imtl_g": (1, 0),
    "aligned_mtl": (2, -1),  # of rank one: the condition number is 1 already
    "config": (2, 0),
}


@every(LINES)
def test_identical_and_opposite_gradients(name):
    for direction in (torch.tensor([[3.0, 4.0]]), torch.randn(20, 7, generator=torch.Generator().manual_seed(0))):
        g = direction.double()
        for second, expected in zip((g, -2 * g), LINES[name], strict=True):
            both = torch.stack([g, second], 1)
            d = combine(METHODS[name](gram(both)), both)
            at_most(lengths(d - expected * g), 1e-7 * lengths(g))


@every(["normalized", "nash_mtl", "fairgrad"])
def test_identical_gradients_of_balanced_methods(name):
    g = torch.tensor([[[3.0, 4.0], [3.0, 4.0]]], dtype=torch.float64)
    d = combine(METHODS[name](gram(g)), g)[0] / 5
    # Nash: W = 1 / <g, 2 W g>; FairGrad with alpha = 2: W^(-1/2) = 2 W |g|^2
    weight = {"normalized": 1 / 5, "nash_mtl": (1 / 50) ** 0.5, "fairgrad": (1 / 50) ** (2 / 3)}[name]
    torch.testing.assert_close(d, 2 * weight * torch.tensor([3 / 5, 4 / 5], dtype=torch.float64), rtol=1e-8, atol=0)


@every(METHODS)
@settings(max_examples=8)
@given(seed=seeds, k=some_losses, dimension=dimensions, spread=spreads, decades=st.sampled_from([0.0, 10.0, 30.0]))
def test_weights_of_degenerate_gradients_are_finite(name, seed, k, dimension, spread, decades):
    g = draw(seed, k, dimension, decades, spread, size=8)
    assert METHODS[name](gram(g)).isfinite().all()
    assert METHODS[name](gram(g).float()).isfinite().all()


def symmetric(entries, k, dtype):
    """A block (1, K, K) from the entries of its upper triangle."""
    rows, columns = torch.triu_indices(k, k)
    block = torch.zeros(k, k, dtype=dtype)
    block[rows, columns] = block[columns, rows] = torch.tensor(entries, dtype=torch.float64).to(dtype)
    return block[None]


def extreme(dtype, k, size=300):
    """Symmetric blocks of any finite numbers: huge, tiny, subnormal, zero, one; no Gram blocks of anything."""
    limits = torch.finfo(dtype)
    generator = torch.Generator().manual_seed(k)
    drawn = partial(torch.rand, size, k, k, dtype=torch.float64, generator=generator)
    low, high = torch.tensor([limits.smallest_normal, limits.max], dtype=torch.float64).log2()
    values = 2 ** (low - 10 + drawn() * (high - low + 10)) * (drawn() - 0.5).sign()
    special = torch.tensor(
        [0.0, 1.0, -1.0, limits.max, -limits.max, limits.smallest_normal, limits.smallest_normal * limits.eps],
        dtype=torch.float64,
    )
    index = torch.randint(len(special), (size, k, k), generator=generator)
    values = torch.where(drawn() < 0.3, special[index], values)
    blocks = values.clamp(-limits.max, limits.max).to(dtype)
    return torch.triu(blocks) + torch.triu(blocks, 1).mT


@every(METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_of_anything_finite_are_finite(name, dtype):
    for k in (1, 2, 3, 4):
        blocks = extreme(dtype, k)
        assert blocks.isfinite().all()
        positive = blocks.clone()
        positive.diagonal(dim1=1, dim2=2).abs_()
        for case in (blocks, positive):
            before = case.clone()
            weights = METHODS[name](case)
            assert weights.isfinite().all()
            assert weights.shape == case.shape[:2] and weights.dtype == dtype and weights.device == case.device
            assert torch.equal(case, before)


@every(METHODS)
@settings(max_examples=20)
@given(k=st.integers(1, 3), width=st.sampled_from([16, 32, 64]), data=st.data())
def test_weights_of_anything_hypothesis_finds_are_finite(name, k, width, data):
    number = st.floats(allow_nan=False, allow_infinity=False, width=width)
    entries = data.draw(st.lists(number, min_size=k * (k + 1) // 2, max_size=k * (k + 1) // 2))
    dtype = {16: torch.float16, 32: torch.float32, 64: torch.float64}[width]
    assert METHODS[name](symmetric(entries, k, dtype)).isfinite().all()


@every(METHODS)
def test_lone_infinities_do_not_spread(name):
    """A gradient that overflowed takes no part, nor does it harm the other samples."""
    g = in_general_position(0, 3)[:2]
    blocks = gram(g).repeat(2, 1, 1)
    blocks[2, 1, :] = blocks[2, :, 1] = torch.inf
    weights = METHODS[name](blocks)
    assert weights.isfinite().all()
    if name not in ("random", "pcgrad_random", "gradvac"):
        same_weights(weights[:2], METHODS[name](gram(g)), g)


# Mechanics


@every(METHODS)
def test_weights_are_detached_and_autocast_does_not_coarsen_them(name):
    for k in (2, 3):
        blocks = gram(draw(k, k)).float()
        expected = METHODS[name](blocks)
        assert not METHODS[name](blocks.clone().requires_grad_()).requires_grad
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = METHODS[name](blocks)
        assert torch.equal(inside, expected) and inside.dtype == torch.float32


@every(METHODS)
def test_precision_of_the_gram_is_all_that_single_precision_costs(name):
    for k in (1, 2, 3):
        g = in_general_position(k, k, decades=1.0, size=40)
        weights = METHODS[name](gram(g).float())
        assert weights.dtype == torch.float32
        same_weights(weights.double(), METHODS[name](gram(g)), g, 2e-3)


@every(STATELESS | {"gradvac, target": None})
def test_samples_alone_have_the_weights_that_they_have_together(name):
    member = TRANSFORMS.get(name) or STATELESS[name]
    assert chain(member).samplewise
    for k in (1, 2, 3, 5):
        g = torch.cat([draw(k, k, size=3), draw(k, k, decades=8.0, size=2), draw(k, k, spread=0.1, size=2)])
        g[2, 0] = 0
        together = METHODS[name](gram(g))
        alone = torch.cat([METHODS[name](gram(row[None])) for row in g])
        at_most((together - alone).abs(), 1e-12 * together.abs().clamp(min=1))


@every(["pcgrad_random", "random", "gradvac"])
def test_methods_that_look_at_the_batch_say_so(name):
    assert not chain(TRANSFORMS[name]).samplewise


@pytest.mark.parametrize(("name", "k"), [(name, k) for name in METHODS for k in (2, 3) if (name, k) not in LONG])
def test_compiles_without_a_break_and_equals_eager(name, k, monkeypatch):
    for module in (balance, descent):
        monkeypatch.setattr(module, "STEPS", 1)  # less to compile; the slow test takes them all
    assert_compiles(name, k)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "k"), [*LONG, ("nash_mtl", 3), ("fairgrad", 2), ("fairgrad", 3)])
def test_compiles_with_all_steps(name, k):
    assert_compiles(name, k)


def assert_compiles(name, k):
    torch._dynamo.reset()
    blocks = gram(torch.cat([draw(k, k), draw(k, k, decades=8.0)]))
    if name in STATELESS:
        compiled = torch.compile(STATELESS[name], fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(blocks), STATELESS[name](blocks), rtol=1e-12, atol=0)
        return
    transform = TRANSFORMS[name]
    compiled = torch.compile(transform.update, fullgraph=True, backend="aot_eager")
    state, eager = transform.init(), transform.init()
    for _ in range(2):
        weights, state = compiled(blocks, state)
        expected, eager = transform.update(blocks, eager)
        torch.testing.assert_close(weights, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(state, eager, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every(METHODS)
def test_devices_agree(name):
    for k in (1, 2, 3, 5):
        g = in_general_position(k, k)
        weights = METHODS[name](gram(g).cuda())
        assert weights.device.type == "cuda"
        same_weights(weights.cpu(), METHODS[name](gram(g)), g)
