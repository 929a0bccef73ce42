"""Graphs with checkpointed regions are walked in pieces: the same numbers as by brute force, in less memory."""

import functools
import weakref

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd.graph import save_on_cpu
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import harmony
from harmony.engines.errors import LeakedGradientError
from harmony.engines.forward import forward
from harmony.engines.tape import engine as tape
from harmony.engines.tape import pieces
from tests import zoo
from tests.harmony import oracle
from tests.harmony.options import keywords
from tests.harmony.test_tape import EXACT, LOOPED, assert_exact, assert_fused, smooth, truth_of

again = functools.partial(checkpoint, use_reentrant=False)
WIDTH = 3


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def walked(monkeypatch):
    """How many pieces each step walked through."""
    numbers = []
    original = tape.passes
    monkeypatch.setattr(tape, "passes", lambda graph, parts, *rest: (numbers.append(len(parts)), original(graph, parts, *rest))[1])
    return numbers


def layer(x, w, v):
    """A layer with a residual stream of its own."""
    return x + F.gelu(F.layer_norm(x, x.shape[-1:]) @ w) @ v


def two_losses(f):
    return {"first": f[:, 0] ** 2, "norm": f.pow(2).mean(1)}


def chain(x, a, b, c, d, head):
    """A region that makes the residual stream, and one that is added to it; an op outside of any between them."""
    x = again(layer, x @ a, b, c)
    return zoo.over_tokens((x + again(torch.matmul, F.silu(x), d)) @ head)


def inside_and_outside(x, w, v):
    """Parameters that are used in two regions, and outside of any before and behind them."""
    x = again(layer, x @ w, w, v)
    return zoo.over_tokens(again(layer, F.silu(x), v, w) @ w + x @ v)


def unused(x, w, v):
    """A region whose output nobody uses, with a parameter that others use."""
    again(layer, x @ w, v, w)
    return zoo.over_tokens(again(layer, x @ w, w, v))


def nested(x, w, v, u):
    """A region in a region: ops of the outer one stand before the inner one and behind it."""

    def outer(x, w, v):
        return again(layer, x @ w, w, v).sin() @ v

    x = again(outer, x, w, v)
    return zoo.over_tokens(again(layer, again(outer, x, v, u), u, w))


def tower(x, w, v, u):
    """One region holds all."""
    return again(lambda x, w, v, u: zoo.over_tokens(layer(layer(x @ w, w, v), v, u)), x, w, v, u)


def two_streams(x, w, v, u):
    """Two streams that exchange: at no place does a single tensor go on."""
    left, right = x @ w, x @ v
    for _ in range(3):
        left, right = left + again(layer, right, u, w), right + again(layer, left, w, v)
    return zoo.over_tokens(left * right)


def skips(x, w, v, u):
    """The inputs of early regions are used by late ones: gradients that leave a late piece run through others."""
    first = x @ w
    second = again(layer, first, w, v)
    third = again(layer, second, v, u)
    return zoo.over_tokens(again(layer, third + second, u, w) + again(torch.matmul, first, v))


def depths(x, w, v, u):
    """Embeddings are taken at several depths."""
    first = again(layer, x @ w, w, v)
    second = again(layer, first, v, u)
    return torch.cat([zoo.over_tokens(y) for y in (first, second, again(layer, second, u, w))], 1)


def dropped(x, w, v):
    """Dropout in a region, which draws the same numbers again."""
    x = again(lambda x, w: F.dropout(x @ w, 0.4), x, w, preserve_rng_state=True)
    return zoo.over_tokens(again(lambda x, v: F.dropout(x @ v, 0.4), x, v))


def opaque(x, w, v):
    """An op without a closed form in a region, and a parameter that is made of others there."""
    x = again(lambda x, w: torch.cdist(x, w), x, w)
    return zoo.over_tokens(again(lambda x, v: x @ F.normalize(v), x, v))


def by_data(x, w, v):
    """Rows that the data move, in a region."""

    def sort(x, v):
        order = x.detach().sum(2).argsort(1)[..., None].expand_as(x)
        return x.gather(1, order) @ v

    return zoo.over_tokens(again(sort, again(layer, x, w, v), v))


def case_of(encode, tokens=6):
    """The encoder on B samples of some tokens."""
    names = [name for name in encode.__code__.co_varnames[: encode.__code__.co_argcount] if name != "x"]
    return zoo.raw(encode, zoo.randn(zoo.B, tokens, WIDTH), **{name: zoo.randn(WIDTH, WIDTH) for name in names})


PIECES = dict.fromkeys((chain, inside_and_outside, unused, nested, tower, two_streams, skips, depths, opaque, by_data), 0)


@pytest.mark.filterwarnings(LOOPED)
@pytest.mark.parametrize("losses", [two_losses, zoo.supervised], ids=["2", "3"])
@pytest.mark.parametrize("encode", PIECES, ids=lambda f: f.__name__)
def test_pieces_equal_brute_force(encode, losses, walked):
    case = case_of(encode)._replace(losses=losses)
    truth = truth_of(case)
    for options in ({}, {"group_size": 2}, {"chunk_size": 2}, {"memory": 1}, {"update": "kept"}, {"update": "tape"}):
        for verify in ("always", "never"):
            assert_exact(case, truth, verify=verify, **options)
            assert_fused(case, truth, harmony.chain(smooth), verify=verify, **options)
    print(encode.__name__, max(walked), min(walked))
