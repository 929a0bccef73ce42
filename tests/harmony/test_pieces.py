"""Graphs with checkpointed regions are walked in pieces: the same numbers as by brute force, in less memory."""

import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd.graph import save_on_cpu
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import harmony
from harmony.engines.errors import LeakedGradientError
from harmony.engines.tape import engine as tape
from harmony.engines.tape import pieces, topology
from tests import zoo
from tests.harmony import oracle
from tests.harmony.options import keywords
from tests.harmony.test_tape import (
    EXACT,
    LOOPED,
    assert_exact,
    assert_fused,
    assert_gram_per_parameter,
    smooth,
    truth_of,
)

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
    monkeypatch.setattr(
        tape, "passes", lambda graph, parts, *rest: (numbers.append(len(parts)), original(graph, parts, *rest))[1]
    )
    return numbers


def layer(x, w, v):
    """A layer with a residual stream of its own."""
    return x + F.gelu(F.layer_norm(x, x.shape[-1:]) @ w) @ v


def two_losses(f):
    return {"first": f[:, 0] ** 2, "norm": f.pow(2).mean(1)}


def chain(x, w, v, u, a, b):
    """A region that makes the residual stream, and one that is added to it; an op outside of any between them."""
    x = again(layer, x @ w, v, u)
    return zoo.over_tokens((x + again(torch.matmul, F.silu(x), a)) @ b)


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
    """A late region takes what two early ones give: gradients that leave it would run through one into the other."""
    first = x @ w
    second = again(layer, first, w, v)
    third = again(layer, second, v, u)
    return zoo.over_tokens(again(lambda y, z, w: (y @ w).sin() + z, third, second, w) + again(torch.matmul, first, v))


def decoder(x, w, v, u):
    """Every layer looks at the same memory."""

    def attend(y, memory, w, v):
        return y + torch.softmax((y @ w) @ memory.mT, -1) @ (memory @ v)

    memory, y = again(layer, x, w, v), x @ u
    for p, q in ((w, v), (v, u), (u, w)):
        y = again(attend, y, memory, p, q)
    return zoo.over_tokens(y)


def depths(x, w, v, u):
    """Embeddings are taken at several depths."""
    first = again(layer, x @ w, w, v)
    second = again(layer, first, v, u)
    return torch.cat([zoo.over_tokens(y) for y in (first, second, again(layer, second, u, w))], 1)


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


PIECES = {
    chain: 3, inside_and_outside: 3, unused: 2, nested: 3, tower: 1, two_streams: 4, skips: 3, decoder: 5, depths: 4,
    opaque: 2, by_data: 2,
}  # fmt: skip


@pytest.mark.filterwarnings(LOOPED)
@pytest.mark.parametrize("losses", [two_losses, zoo.supervised], ids=["2", "3"])
@pytest.mark.parametrize("encode", PIECES, ids=lambda f: f.__name__)
def test_pieces_equal_brute_force(encode, losses, walked):
    case = case_of(encode)._replace(losses=losses)
    truth = truth_of(case)
    for options in ({}, {"group_size": 2}, {"chunk_size": 2}, {"memory": 1}, {"wrt": lambda name: name == "w"}):
        for verify in ("always", "never"):
            assert_exact(case, truth, verify=verify, **options)
            assert_fused(case, truth, harmony.chain(smooth), verify=verify, **options)
    assert max(walked) == PIECES[encode]
    assert_gram_per_parameter(case, truth, update="backward")
    gram = harmony.gram_vjp(*case, attribution="anchor", engine=harmony.Engine(method="tape")).gram
    assert oracle.relative_error(gram, oracle.gram_blocks(truth_of(case, "anchor"))) < EXACT
    walked.clear()
    for update in ("kept", "tape"):
        assert_exact(case, truth, update=update)
    assert set(walked) == {1}


def test_products_with_one_gradient_equal_brute_force(walked):
    case = case_of(chain)
    truth = truth_of(case)
    products = harmony.gram_vjp(*case, products_with="batch", **keywords(method="tape")).products
    expected = sum(torch.einsum("bk...,...->bk", g, g.sum((0, 1))) for g in truth.values())
    assert oracle.relative_error(products, expected) < EXACT and max(walked) == 3


def test_a_layer_shared_by_modalities(walked):
    """Its gradients under all losses come from the regions of all modalities."""
    params = {name: zoo.randn(WIDTH, WIDTH) for name in ("w1", "v1", "w2", "v2", "video", "audio", "text")}
    lengths = {"video": 6, "audio": 4, "text": 3}

    def encode(p, batch):
        x = {name: tokens @ p[name] for name, tokens in batch.items()}
        for n in ("1", "2"):
            x = {name: again(layer, tokens, p["w" + n], p["v" + n]) for name, tokens in x.items()}
        return {name: zoo.over_tokens(tokens) for name, tokens in x.items()}

    batch = {name: zoo.randn(zoo.B, n, WIDTH) for name, n in lengths.items()}
    case = zoo.Case(encode, zoo.contrastive, params, batch)
    truth = truth_of(case)
    for options in ({}, {"group_size": 2}, {"wrt": lambda name: name == "w2"}, {"wrt": "shared"}):
        own = (
            truth if options.get("wrt") != "shared" else {n: g for n, g in truth.items() if n not in ("audio", "text")}
        )
        gram = harmony.gram_vjp(*case, **options, **keywords(method="tape", verify="always")).gram
        if callable(options.get("wrt")):
            own = {"w2": truth["w2"]}
        assert oracle.relative_error(gram, oracle.gram_blocks(own, options.get("group_size", 1))) < EXACT
    assert_exact(case, truth)
    assert_fused(case, truth, harmony.chain(smooth))
    assert max(walked) == 7  # the regions of two layers and three modalities, and what lies behind all of them


@pytest.mark.filterwarnings(LOOPED)
@pytest.mark.parametrize("name", zoo.CASES)
def test_a_whole_encoder_in_a_region(name):
    """Every rule reads what it needs of tensors that are computed again."""
    case = zoo.CASES[name]()
    wrapped = case._replace(encode=lambda p, x: again(case.encode, p, x))
    assert_exact(wrapped, truth_of(case))


operands = st.tuples(st.integers(0, 7), st.integers(0, 7), st.sampled_from("wvu"), st.sampled_from("wvu"))
programs = st.lists(
    st.tuples(st.sampled_from(["op", "linear", "sum", "region", "pair", "nested"]), operands), max_size=8
)


@settings(max_examples=30)
@given(programs, st.integers(0, 7))
def test_any_graph_of_regions_equals_brute_force(program, other):
    """Ops on what earlier ones gave, inside and outside of regions, with three parameters in any place."""

    def encode(x, w, v, u):
        weights, pool = {"w": w, "v": v, "u": u}, [x @ w]
        for kind, (i, j, p, q) in program:
            a, b, p, q = pool[i % len(pool)], pool[j % len(pool)], weights[p], weights[q]
            if kind == "op":
                pool.append(a.sin())
            elif kind == "linear":
                pool.append(a @ p)
            elif kind == "sum":
                pool.append(a + b)
            elif kind == "region":
                pool.append(again(layer, a, p, q))
            elif kind == "pair":
                pool.extend(again(lambda a, b, p: ((a @ p).sin() + b, a * b.cos()), a, b, p))
            else:
                pool.append(again(lambda a, b, p, q: again(layer, a.sin(), p, q) + b @ q, a, b, p, q))
        return torch.cat([zoo.over_tokens(y) for y in (pool[-1], pool[other % len(pool)])], 1)

    torch.manual_seed(0)
    case = case_of(encode, tokens=2)
    truth = truth_of(case)
    assert_exact(case, truth)
    assert_fused(case, truth, harmony.chain(smooth), group_size=2)


def test_without_a_look_at_the_graph_gradients_would_be_counted_twice(monkeypatch):
    case = case_of(skips)
    truth = truth_of(case)
    monkeypatch.setattr(pieces, "_apart", lambda sources, rest, inside: rest)
    monkeypatch.setattr(topology, "_KNOWN", type(topology._KNOWN)())
    gram = harmony.gram_vjp(*case, **keywords(method="tape")).gram
    monkeypatch.setattr(topology, "_KNOWN", type(topology._KNOWN)())
    assert oracle.relative_error(gram, oracle.gram_blocks(truth)) > 0.01


def test_dropout_in_a_region_draws_one_mask(walked):
    """The same numbers as without checkpointing, from the same random numbers."""

    def encode(run):
        def dropped(x, w, v):
            x = run(lambda x, w: F.dropout(x @ w, 0.4), x, w)
            return zoo.over_tokens(run(lambda x, v: F.dropout(x @ v, 0.4), x, v))

        return dropped

    case = case_of(encode(functools.partial(again, preserve_rng_state=True)))
    plain = case._replace(encode=lambda p, x: encode(lambda f, *args: f(*args))(*x, **p))
    weights, results = zoo.randn(zoo.B, 3), []
    for options in ({}, {"chunk_size": 2}):
        for one in (case, plain):
            torch.manual_seed(1)
            result = harmony.gram_vjp(*one, **keywords(method="tape", **options))
            results.append((result.gram, result.pullback(weights)))
        torch.testing.assert_close(*results[-2:], rtol=EXACT, atol=EXACT)
    assert max(walked) == 2


def hooked(hook):
    def encode(x, w, v):
        y = x @ w
        y = y + again(layer, y, w, v)
        if y.requires_grad:
            hook(y)
        return zoo.over_tokens(y + again(layer, y, v, w))

    return encode


def doubled(grads):
    return tuple(None if g is None else 2 * g for g in grads)


HOOKS = {
    "before an op": lambda y: y.grad_fn.register_prehook(doubled),
    "behind an op": lambda y: y.grad_fn.register_hook(lambda inputs, outputs: doubled(inputs)),
}


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_change_a_gradient_once(name, walked):
    """Hooks of ops, also where a pass ends and the next begins. An encoder with hooks of tensors is no tape's."""
    case = case_of(hooked(HOOKS[name]))
    truth = truth_of(case)
    assert_exact(case, truth)
    assert_fused(case, truth, harmony.chain(smooth))
    assert max(walked) == 3


def test_leaks_are_found_in_every_piece(walked):
    """A hook on an op of the innermost piece mixes samples."""

    def encode(x, w, v):
        y = x @ w
        z = y.sin()
        z.grad_fn.register_hook(lambda inputs, outputs: (inputs[0] + inputs[0].roll(1, 0),))
        return zoo.over_tokens(again(layer, again(layer, z, w, v), v, w))

    case = case_of(encode)
    harmony.gram_vjp(*case, **keywords(method="tape", verify="never"))
    with pytest.raises(LeakedGradientError):
        harmony.gram_vjp(*case, **keywords(method="tape", verify="always"))
    assert walked == [3, 3]


class Outside(torch.autograd.graph.saved_tensors_hooks):
    """Hooks that are no checkpoint."""

    def __init__(self):
        super().__init__(lambda x: x.clone(), lambda x: x)


@pytest.mark.parametrize("context", [save_on_cpu, Outside])
def test_other_hooks_of_saved_tensors_change_nothing(context, walked):
    def encode(x, w, v):
        for p, q in ((w, v), (v, w)):
            with context():
                x = layer(x, p, q)
        return zoo.over_tokens(x)

    def with_regions(x, w, v):
        with context():
            return zoo.over_tokens(again(layer, again(layer, x @ w, w, v), v, w))

    for function, parts in ((encode, 1), (with_regions, 3)):
        walked.clear()
        case = case_of(function)
        truth = truth_of(case)
        assert_exact(case, truth)
        assert_fused(case, truth, harmony.chain(smooth))
        assert max(walked) == parts


def test_reentrant_checkpoints_are_refused_as_ever():
    """They hide their parameters; where they have none, torch cannot pass through them."""
    inner = nn.Linear(WIDTH, WIDTH).double()
    case = case_of(lambda x, w: zoo.over_tokens(checkpoint(inner, x @ w, use_reentrant=True)))
    with pytest.raises(RuntimeError, match="use_reentrant"):
        harmony.gram_vjp(*case, **keywords(method="tape"))


class Stack(nn.Module):
    """Layers, each computed again or not, on two modalities."""

    def __init__(self, layers, width, again):
        super().__init__()
        self.again, self.runs = again, 0
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            for _ in range(layers)
        )

    def forward(self, **batch):
        return {name: self.encode(x) for name, x in batch.items()}

    def encode(self, x):
        for block in self.layers:
            x = x + (again(self.run, block, x) if self.again else block(x))
        return x.mean(1)

    def run(self, block, x):
        self.runs += 1
        return block(x)


def contrast(f):
    return {name: harmony.losses.info_nce(f["a"], f["b"], temperature=t) for name, t in (("soft", 1.0), ("hard", 0.1))}


def test_pieces_behind_the_gram_are_left_alone():
    """The Gram over the last layer: the passes of two losses and the reading compute no other layer again."""
    model = Stack(4, 8, again=True)
    batch = {name: torch.randn(4, 5, 8) for name in "ab"}
    options = {"wrt": lambda name: name.startswith("layers.3."), "engine": harmony.Engine("tape", verify="never")}
    for _ in range(2):
        model.runs = 0
        harmony.backward(model, batch, contrast, harmony.chain(harmony.realign.pcgrad), **options)
    forward, update, losses, reading = 8, 8, 2 * 2, 2
    assert model.runs == forward + update + losses + reading


class Alive(TorchDispatchMode):
    """The most bytes of what was made inside and not freed."""

    def __init__(self):
        super().__init__()
        self.known, self.now, self.most = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for x in pytree.tree_leaves(output):
            if isinstance(x, torch.Tensor):
                self.add(x.untyped_storage())
        if self.now > self.most:
            self.known = {key: pair for key, pair in self.known.items() if not pair[0].expired()}
            self.now = sum(size for _, size in self.known.values())
            self.most = max(self.most, self.now)
        return output

    def add(self, storage):
        reference, size = self.known.get(storage._cdata, (None, 0))
        if reference is None or reference.expired():
            self.known[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
            self.now += storage.nbytes() - size


@pytest.mark.parametrize("chunk_size", [None, 8])
def test_checkpointing_saves_memory(chunk_size):
    """Three quarters at least, for eight layers; without pieces, nothing."""
    engine = harmony.Engine("tape", memory=2**20, chunk_size=chunk_size, verify="always")
    harmonizer, most = harmony.chain(harmony.realign.pcgrad), {}
    batch = {name: torch.randn(16, 64, 32) for name in "ab"}
    for flag in (False, True):
        torch.manual_seed(0)
        model = Stack(8, 32, again=flag)
        for _ in range(2):  # what is derived at first needs no more than what is known
            model.zero_grad()
            with Alive() as alive:
                harmony.backward(model, batch, contrast, harmonizer, engine=engine)
            most.setdefault(flag, []).append(alive.most)
    assert max(most[True]) < 0.25 * min(most[False])
