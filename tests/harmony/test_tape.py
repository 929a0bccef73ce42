"""The tape engine against brute force: the zoo, blocks and chunks, precision, randomness, and what it must refuse."""

import warnings
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import harmony
from tests import zoo
from tests.harmony import oracle
from tests.harmony.options import keywords

UPDATES = ("kept", "tape", "backward")
EXACT = 1e-9
LOOPED = "ignore:.*has no closed form:UserWarning"  # said where an op's own backward is run once a sample


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def truth_of(case, attribution="activation"):
    return oracle.per_sample_gradients(*case, attribution=attribution)


def select(grads, wrt):
    return {name: g for name, g in grads.items() if wrt is None or wrt(name)}


def assert_update(grads, truth, weights, tolerance=EXACT):
    """``grads`` is the sum of the per-sample gradients (B, K, ...) with weights (B, K)."""
    expected = {name: torch.einsum("bk,bk...->...", weights.double(), g.double()) for name, g in truth.items()}
    assert oracle.error_per_parameter(grads, expected) < tolerance


def assert_gram_per_parameter(case, truth, tolerance=EXACT, **options):
    """The Gram of each parameter alone, each block relative to its own scale."""
    grams = harmony.gram_vjp(*case, labels=lambda name: name, **keywords(method="tape", **options)).gram
    assert oracle.error_per_block(grams, {n: oracle.gram_blocks({n: g}) for n, g in truth.items()}) < tolerance


def assert_exact(case, truth, tolerance=EXACT, **options):
    """Gram and a weighted update of ``gram_vjp`` equal the brute-force gradients ``truth`` (activation-wise)."""
    group_size, size = options.get("group_size", 1), len(next(iter(truth.values())))
    options = {"method": "tape", **options}
    result = harmony.gram_vjp(*case, **keywords(**options))
    expected = oracle.gram_blocks(select(truth, options.get("wrt")), group_size)
    assert oracle.relative_error(result.gram, expected) < tolerance
    weights = torch.rand(result.gram.shape[:2], dtype=result.gram.dtype) + 0.5
    assert_update(result.pullback(weights), truth, spread(weights, group_size, size), tolerance)


def assert_fused(case, truth, harmonizer, tolerance=EXACT, **options):
    """The composed step equals the weights made of the brute-force Gram and the update they give."""
    group_size, size = options.get("group_size", 1), len(next(iter(truth.values())))
    options = {"method": "tape", **options}
    grads, _, info = harmony.harmonized_grad(*case[:2], harmonizer, **keywords(**options))(*case[2:], harmonizer.init())
    gram = oracle.gram_blocks(select(truth, options.get("wrt")), group_size)
    assert oracle.relative_error(info.gram, gram) < tolerance
    weights, _ = harmonizer.update(gram, harmonizer.init())
    torch.testing.assert_close(info.weights.double(), weights, rtol=100 * tolerance, atol=100 * tolerance)
    assert_update(grads, truth, spread(weights, group_size, size), 100 * tolerance)


def spread(weights, group_size, size):
    return weights.repeat_interleave(group_size, 0)[:size]


def cast(case, dtype):
    to = lambda x: x.to(dtype) if x.is_floating_point() else x  # noqa: E731
    return case._replace(params=pytree.tree_map(to, case.params), batch=pytree.tree_map(to, case.batch))


def first_samples(case, n):
    return case._replace(batch=pytree.tree_map(lambda x: x[:n], case.batch))


@harmony.samplewise
def smooth(gram):
    """Weights that depend on every entry of a sample's block, smoothly."""
    return 1 + torch.tanh(gram.sum(2) / gram.diagonal(dim1=1, dim2=2).sum(1, keepdim=True))


# The zoo


@pytest.mark.filterwarnings(LOOPED)
@pytest.mark.parametrize("name", zoo.CASES)
def test_zoo_equals_brute_force(name):
    case = zoo.CASES[name]()
    truth = truth_of(case)
    for update in UPDATES:
        assert_exact(case, truth, update=update)
        assert_fused(case, truth, harmony.chain(smooth), update=update)
    assert_gram_per_parameter(case, truth)
    single = cast(case, torch.float32)
    assert_exact(single, truth, tolerance=1e-4)
    assert_gram_per_parameter(single, truth, tolerance=1e-4)
    gram = harmony.gram_vjp(*case, attribution="anchor", engine=harmony.Engine(method="tape")).gram
    assert oracle.relative_error(gram, oracle.gram_blocks(truth_of(case, "anchor"))) < EXACT


def in_mode(train):
    """``zoo.call`` with the module in training or in eval mode, but for what means something else there."""

    def call(module, params, *args):
        module.train(train)
        for child in module.modules():
            if isinstance(child, nn.Dropout):
                child.p = 0.0
            elif isinstance(child, nn.MultiheadAttention):
                child.dropout = 0.0
            if isinstance(child, nn.modules.batchnorm._BatchNorm) or parametrize.is_parametrized(child):
                child.eval()  # statistics over the batch; power iterations
        return original(module, params, *args)

    original = zoo.call
    return call


@pytest.mark.filterwarnings(LOOPED)
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", zoo.CASES)
def test_zoo_in_training_and_in_eval_mode(name, train, monkeypatch):
    monkeypatch.setattr(zoo, "call", in_mode(train))
    case = zoo.CASES[name]()
    truth = truth_of(case)
    for dtype, tolerance in ((torch.float64, EXACT), (torch.float32, 1e-4)):
        assert_exact(cast(case, dtype), truth, tolerance=tolerance)
        assert_gram_per_parameter(cast(case, dtype), truth, tolerance=tolerance)


@pytest.mark.filterwarnings("ignore::UserWarning")  # what vmap cannot batch is looped
@pytest.mark.parametrize("name", zoo.CASES)
def test_zoo_by_the_reference_engine(name):
    case = zoo.CASES[name]()
    assert_exact(case, truth_of(case), method="vmap")


@pytest.mark.filterwarnings(LOOPED)
@pytest.mark.parametrize("name", zoo.CASES)
def test_zoo_in_parts(name):
    """Blocks of one group (no memory), groups with a remainder, chunks with a remainder of one, groups over chunks."""
    case = zoo.CASES[name]()
    truth = truth_of(case)
    assert_exact(case, truth, memory=1, group_size=2, update="kept")
    assert_fused(case, truth, harmony.chain(smooth), memory=1, chunk_size=2)
    assert_fused(case, truth, harmony.chain(smooth), group_size=4, chunk_size=3, update="tape")


@pytest.mark.parametrize("options", [{}, {"chunk_size": 2}, {"memory": 1}, {"update": "tape"}, {"update": "backward"}])
@pytest.mark.parametrize("gammas", [(), (-0.2,)])
def test_fused_step_equals_gram_weights_and_pullback(gammas, options):
    case = zoo.shared_backbone()
    harmonizer = harmony.chain(*map(harmony.curriculum.threshold, gammas), harmony.realign.pcgrad)
    assert harmonizer.samplewise
    step = harmony.harmonized_grad(case.encode, case.losses, harmonizer, **keywords(method="tape", **options))
    grads, _, info = step(case.params, case.batch, harmonizer.init())
    result = harmony.gram_vjp(*case, **keywords(method="tape", **options))
    weights, _ = harmonizer.update(result.gram, harmonizer.init())
    torch.testing.assert_close((info.values, info.terms, info.gram), (result.values, result.terms, result.gram))
    torch.testing.assert_close((info.weights, grads), (weights, result.pullback(weights)))
    if gammas:
        assert 0 < int(info.kept) < zoo.B


# Groups, chunks, memory, wrt, sizes


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("name", ["transformer_train", "raw_parameters", "tied_convolutions", "time_batch_merged"])
def test_few_samples(name, size):
    case = first_samples(zoo.CASES[name](), size)
    truth = truth_of(case)
    for options in ({}, {"chunk_size": 1}, {"group_size": 2}, {"memory": 1}):
        assert_exact(case, truth, **options)
        assert_fused(case, truth, harmony.chain(smooth), **options)


@pytest.mark.parametrize("losses", [1, 2, 4])
def test_any_number_of_losses(losses):
    case = zoo.transformer_train()
    coefficients = zoo.randn(losses, 8)
    case = case._replace(losses=lambda f: {str(k): (f @ c).tanh() for k, c in enumerate(coefficients)})
    truth = truth_of(case)
    for update in UPDATES:
        assert_exact(case, truth, update=update)
        assert_fused(case, truth, harmony.chain(smooth), update=update, memory=1)


SUBSETS = {
    "first layer": lambda name: name.startswith("encoder.layers.0"),
    "last layer": lambda name: name.startswith("encoder.layers.1"),
    "one bias": lambda name: name == "encoder.layers.0.linear2.bias",
    "inputs": lambda name: name in ("token", "positions"),
}


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("subset", SUBSETS)
def test_gram_over_some_parameters_and_update_over_all(subset, update):
    case = zoo.transformer_train()
    truth = truth_of(case)
    for options in ({}, {"chunk_size": 2}, {"memory": 1, "group_size": 2}):
        assert_exact(case, truth, wrt=SUBSETS[subset], update=update, **options)
        assert_fused(case, truth, harmony.chain(smooth), wrt=SUBSETS[subset], update=update, **options)


@st.composite
def encoders(draw):
    """A stack of layers on (b t), (t b) or unflattened tokens, then one square layer several times over."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    widths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    tokens, size, losses = draw(st.integers(1, 5)), draw(st.integers(1, 6)), draw(st.integers(1, 4))
    order, uses = draw(st.sampled_from(["b t c", "(b t) c", "(t b) c"])), draw(st.integers(0, 3))
    params = {"token": zoo.randn(widths[0])}
    for n, (i, o) in enumerate(pairwise(widths)):
        params |= {f"{n}.weight": zoo.randn(o, i), f"{n}.bias": zoo.randn(o)}
    params |= {"shared": zoo.randn(widths[-1], widths[-1]), "scale": zoo.randn(widths[-1])}

    def encode(p, x):
        h = x + p["token"]
        if order != "b t c":
            h = (h if order == "(b t) c" else h.transpose(0, 1)).flatten(0, 1)
        for n in range(len(widths) - 1):
            h = F.linear(h, p[f"{n}.weight"], p[f"{n}.bias"]).tanh()
        for _ in range(uses):
            h = h + (h @ p["shared"]).sin() * p["scale"]
        if order != "b t c":
            h = h.unflatten(0, (len(x), tokens) if order == "(b t) c" else (tokens, len(x)))
        return zoo.over_tokens(h.transpose(0, 1) if order == "(t b) c" else h)

    directions = zoo.randn(losses, widths[-1])
    couple = lambda y: y * (1 + y.mean()).exp()  # noqa: E731  (every term depends on all samples)
    outputs = lambda f: {str(k): couple((f @ d).sin()) for k, d in enumerate(directions)}  # noqa: E731
    return zoo.Case(encode, outputs, params, zoo.randn(size, tokens, widths[0]))


@settings(max_examples=120)
@given(
    case=encoders(),
    group_size=st.integers(1, 7),
    chunk_size=st.none() | st.integers(1, 7),
    memory=st.sampled_from([1, 1000, 2**28]),
    update=st.sampled_from(("auto", *UPDATES)),
    part=st.sampled_from([None, "token", "shared", "weight"]),
)
def test_random_encoders(case, group_size, chunk_size, memory, update, part):
    used = [n for n in case.params if part is not None and part in n]
    wrt = (lambda name: name in used) if used else None
    truth = truth_of(case)
    if select(truth, wrt) and all(g.abs().max() == 0 for g in select(truth, wrt).values()):
        wrt = None  # a layer that is used no time at all
    options = {"group_size": group_size, "chunk_size": chunk_size, "memory": memory, "update": update, "wrt": wrt}
    assert_exact(case, truth, **options)
    assert_fused(case, truth, harmony.chain(smooth), tolerance=1e-8, **options)


# What mixes samples


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("name", zoo.MIXING)
def test_mixing_is_refused_by_name(name, size):
    case = first_samples(zoo.MIXING[name](), size)
    for method in ("tape", "auto"):
        with pytest.raises(ValueError, match=r"batch normalisation '1'|the op of \w+Backward\d") as caught:
            harmony.gram_vjp(*case, engine=harmony.Engine(method=method))
        assert any(f"parameter {parameter!r}" in str(caught.value) for parameter in case.params)


def sorted_by_length(x, lengths, w):
    """Samples in an order that depends on the data, as recurrent encoders like them, and back."""
    order = lengths.argsort()
    return zoo.over_tokens((x[order] @ w).tanh()[order.argsort()])


def packed(x, lengths, w):
    """The valid tokens of all samples, one after the other."""
    mask = torch.arange(x.shape[1]) < lengths[:, None]
    y = torch.zeros(*mask.shape, w.shape[1], dtype=x.dtype)
    y[mask] = (x[mask] @ w).tanh()
    return zoo.over_tokens(y)


@pytest.mark.parametrize("encode", [sorted_by_length, packed])
@pytest.mark.parametrize("lengths", [[3, 3, 3, 3, 3], [3, 2, 4, 1, 5], [2, 3, 4, 1, 5]])
def test_an_order_that_depends_on_the_data_gives_no_wrong_number(encode, lengths):
    """The same shapes with another order of rows: what was learned from one batch does not hold for the next."""
    case = zoo.raw(encode, zoo.randn(5, 5, 4), torch.tensor([3] * 5), w=zoo.randn(4, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_exact(case, truth_of(case), method="auto")
        case = case._replace(batch=(zoo.randn(5, 5, 4), torch.tensor(lengths)))
        assert_exact(case, truth_of(case), method="auto")


def trimmed(x, lengths, scale):
    """Tokens that no sample of the batch has are cut off, as collators do."""
    tokens = int(lengths.max())
    valid = torch.arange(tokens) < lengths[:, None]
    return ((x[:, :tokens] * scale).tanh() * valid[..., None]).sum(1)


def missing(x, lengths, scale):
    """Samples without a valid token have an embedding of zero."""
    h = (x.flatten(0, 1) * scale).tanh().unflatten(0, x.shape[:2])
    return h.masked_fill(torch.arange(x.shape[1])[:, None] >= lengths[:, None, None], 0).sum(1)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("encode", [trimmed, missing])
@pytest.mark.parametrize("lengths", [[3, 2, 4, 1, 5], [0, 2, 3, 1, 4], [1, 1, 1, 1, 1]])
def test_lengths_and_missing_samples_are_not_taken_for_mixing(encode, lengths):
    case = zoo.raw(encode, zoo.randn(5, 5, 4), torch.tensor(lengths), scale=zoo.randn(4))
    assert_exact(case, truth_of(case), method="auto")
    assert_fused(case, truth_of(case), harmony.chain(harmony.realign.pcgrad), method="auto", chunk_size=2)


# Encoders that cannot be recorded


def loop_over_samples(x, w):
    return torch.stack([(row @ w).tanh() for row in x])


def branch_on_data(x, w):
    h = x @ w
    copies = len(x) > 1 and bool((x == x[0]).all())
    return h.sin() * h if copies else h.tanh()


def test_a_python_loop_over_samples_is_left_to_other_engines():
    case = zoo.raw(loop_over_samples, zoo.randn(zoo.B, 4), w=zoo.randn(4, 3))
    with pytest.raises(NotImplementedError, match="a Python loop over the samples"):
        harmony.gram_vjp(*case, engine=harmony.Engine(method="tape"))
    with pytest.warns(UserWarning, match="tape engine cannot record"):
        assert_exact(case, truth_of(case), method="auto")
    with pytest.warns(UserWarning, match="tape engine cannot record"):
        assert_fused(case, truth_of(case), harmony.chain(smooth), method="auto", chunk_size=2)


def test_a_branch_on_the_batch_takes_the_way_that_a_plain_pass_takes():
    """Two copies of a sample would take another: nothing but the batch itself is encoded."""
    case = zoo.raw(branch_on_data, zoo.randn(zoo.B, 4), w=zoo.randn(4, 3))
    assert_exact(case, truth_of(case))
    assert_fused(case, truth_of(case), harmony.chain(smooth), chunk_size=2)


# Random numbers


class Seen:
    """Losses that remember the embeddings they were given."""

    def __init__(self, losses):
        self.losses = losses

    def __call__(self, f):
        self.embeddings = f.detach()
        return self.losses(f)


@pytest.mark.parametrize("options", [{}, {"chunk_size": 2}, {"chunk_size": 4}, {"group_size": 3, "chunk_size": 2}])
@pytest.mark.parametrize("update", UPDATES)
def test_dropout_has_one_mask_in_the_fused_step(update, options):
    """The encoder is linear: the mask can be read off the embeddings, and the exact gradients computed from it."""
    dropout, x = nn.Dropout(0.5), torch.rand(7, 4, dtype=torch.float64) + 1
    losses = Seen(lambda f: {"first": f[:, 0] ** 2, "all": f.sum(1)})
    params, harmonizer = {"w": torch.ones(4, dtype=torch.float64)}, harmony.chain(smooth)
    step = harmony.harmonized_grad(
        lambda p, x: dropout(x * p["w"]), losses, harmonizer, **keywords(method="tape", update=update, **options)
    )
    for _ in range(2):  # learnt, and known
        grads, _, info = step(params, x, harmonizer.init())
        f = losses.embeddings
        assert 0 < (f == 0).sum() < f.numel()
        first = torch.zeros_like(x)
        first[:, 0] = 2 * f[:, 0] * f[:, 0] / 7
        truth = {"w": torch.stack([first, f / 7], dim=1)}
        torch.testing.assert_close(info.gram, oracle.gram_blocks(truth, options.get("group_size", 1)))
        assert_update(grads, truth, spread(info.weights, options.get("group_size", 1), 7))


def noisy_transformer(size=5):
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, batch_first=True).double().train()
    params = {name: p.detach() for name, p in layer.named_parameters()}
    pool = lambda p, x: zoo.over_tokens(torch.func.functional_call(layer, p, (x,)))  # noqa: E731
    return zoo.Case(pool, zoo.supervised, params, zoo.randn(size, 6, 8))


@pytest.mark.parametrize("update", UPDATES)
def test_the_tape_draws_what_a_plain_forward_draws(update):
    """Seeded alike, the gradients are those of the plain graph, and the generator ends where a plain forward ends."""
    case = noisy_transformer()
    for _ in range(2):  # learnt, and known
        torch.manual_seed(5)
        result = harmony.gram_vjp(*case, engine=harmony.Engine(method="tape", update=update))
        after = torch.get_rng_state()
        torch.manual_seed(5)
        leaves = {n: p.clone().requires_grad_() for n, p in case.params.items()}
        f = case.encode(leaves, case.batch)
        assert torch.equal(torch.get_rng_state(), after)
        terms = case.losses(f)
        rows = []
        for b in range(zoo.B):  # no sample reaches another's terms
            of_sample = [t[b] / zoo.B for t in terms.values()]
            rows.append([torch.autograd.grad(t, list(leaves.values()), retain_graph=True) for t in of_sample])
        truth = {n: torch.stack([torch.stack([k[i] for k in row]) for row in rows]) for i, n in enumerate(leaves)}
        assert oracle.relative_error(result.gram, oracle.gram_blocks(truth)) < EXACT
        weights = torch.rand(result.gram.shape[:2], dtype=torch.float64)
        assert_update(result.pullback(weights), truth, weights)


# What runs how often


def counted(x, runs):
    """The same tensor; backward passes through it are counted."""
    if x.requires_grad:
        x.grad_fn.register_hook(lambda inputs, outputs: runs.update(backward=runs["backward"] + 1))
    return x


def counter():
    return {"forward": 0, "backward": 0}


@pytest.mark.parametrize(("chunk_size", "expected"), [(None, 1), (2, 5)])
def test_a_step_encodes_as_often_as_it_must(chunk_size, expected):
    """Once; in chunks twice, but for the first chunk, whose graph is kept."""
    runs, case = counter(), zoo.raw(None, zoo.randn(6, 3, 17), w=zoo.randn(17, 2))

    def encode(p, x):
        runs["forward"] += 1
        return zoo.over_tokens(x[0] @ p["w"])

    for _ in range(3):
        runs["forward"] = 0
        harmony.gram_vjp(
            encode, case.losses, case.params, case.batch, engine=harmony.Engine(method="tape", chunk_size=chunk_size)
        )
        assert runs["forward"] == expected


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_buffers_move_once_for_each_chunk(chunk_size):
    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(19, 2)
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

        def forward(self, x):
            self.steps += 1
            return self.linear(x)

    module, seen = Steps(), []
    losses = lambda f: {"a": f[:, 0] ** 2, "b": f[:, 1]}  # noqa: E731
    for _ in range(3):
        before = int(module.steps)
        harmony.backward(
            module, torch.randn(6, 19), losses, harmony.realign.pcgrad, engine=harmony.Engine(chunk_size=chunk_size)
        )
        seen.append(int(module.steps) - before)
    runs = 1 if chunk_size is None else 2  # once for each chunk: what is encoded again starts from the same buffers
    assert seen == [runs] * 3


@pytest.mark.parametrize("update", UPDATES)
def test_a_loss_that_does_not_reach_a_modality_costs_nothing_there(update):
    runs = {name: counter() for name in ("video", "audio", "text")}
    params = {name: zoo.randn(5, 3) for name in runs}
    batch = {name: zoo.randn(6, 5) for name in runs}

    def encode(p, batch):
        return {name: counted((x @ p[name]).tanh(), runs[name]) for name, x in batch.items()}

    def losses(f):
        return {"v": f["video"][:, 0] ** 2, "w": f["video"][:, 1] ** 2, "a": f["audio"].sum(1) ** 2}

    case = zoo.Case(encode, losses, params, batch)
    assert_exact(case, truth_of(case), update=update)
    for count in runs.values():
        count.update(counter())
    harmonizer = harmony.chain(harmony.realign.pcgrad)
    step = harmony.harmonized_grad(
        encode, losses, harmonizer, engine=harmony.Engine(method="tape", update=update, verify="never")
    )
    grads, _, _ = step(params, batch, harmonizer.init())
    extra = update == "backward"
    assert [count["backward"] for count in runs.values()] == [2 + extra, 1 + extra, 0]
    assert (grads["text"] == 0).all() and all(grads[name].abs().max() > 0 for name in ("video", "audio"))


class Checkpointed(nn.Module):
    """Two blocks whose activations are computed again in the backward pass, or not."""

    def __init__(self, again):
        super().__init__()
        self.again, self.runs = again, 0
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4)) for _ in range(2)
        )

    def forward(self, x):
        for block in self.blocks:
            x = x + (checkpoint(self.run, block, x, use_reentrant=False) if self.again else self.run(block, x))
        return zoo.over_tokens(x)

    def run(self, block, x):
        self.runs += 1
        return block(x)


@pytest.mark.parametrize("options", [{}, {"chunk_size": 2}, *({"update": update} for update in UPDATES)])
def test_activation_checkpointing_changes_no_number_and_recomputes_seldom(options):
    plain, again = (Checkpointed(flag).double() for flag in (False, True))
    again.load_state_dict(plain.state_dict())
    x, harmonizer = zoo.randn(zoo.B, 6, 4), harmony.chain(harmony.realign.pcgrad)
    for _ in range(2):  # learnt, and known
        again.runs = 0
        expected, _ = harmony.backward(plain, x, zoo.supervised, harmonizer, **keywords(method="tape", **options))
        info, _ = harmony.backward(again, x, zoo.supervised, harmonizer, **keywords(method="tape", **options))
        torch.testing.assert_close(info.gram, expected.gram)
        torch.testing.assert_close([p.grad for p in again.parameters()], [p.grad for p in plain.parameters()])
    losses, regions, chunks = 3, 2, -(-zoo.B // options.get("chunk_size", zoo.B))
    forwards = chunks if chunks == 1 else 2 * chunks - 1
    assert again.runs <= regions * (forwards + chunks * (losses + 3))  # the update, reading, and a verification


# Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("update", UPDATES)
def test_autocast_accumulates_in_float32(update, dtype):
    case = cast(zoo.transformer_train(), torch.float32)
    expected = harmony.gram_vjp(*case, engine=harmony.Engine(method="tape"))
    with torch.autocast("cpu", dtype=dtype):
        result = harmony.gram_vjp(*case, engine=harmony.Engine(method="tape", update=update))
        grads = result.pullback(torch.ones(result.gram.shape[:2]))
    assert result.gram.dtype == torch.float32 and {g.dtype for g in grads.values()} == {torch.float32}
    assert oracle.relative_error(result.gram, expected.gram) < 0.1
    flat, exact = (
        torch.cat([g.flatten() for g in tree.values()]) for tree in (grads, expected.pullback(torch.ones(5, 3)))
    )
    assert oracle.relative_error(flat, exact) < 0.1


@pytest.mark.parametrize("update", ["kept", "tape"])
def test_under_autocast_nothing_but_the_inputs_is_rounded(update):
    """A layer used twice, its weight cast once: exact products of the rounded inputs and cotangents."""
    x, y = torch.randn(4, 3, 5), torch.randn(4, 2, 5)
    params = {"weight": torch.randn(6, 5)}

    def encode(p, batch):
        return torch.cat([F.linear(t, p["weight"]).float() for t in batch], dim=1)

    coefficients = torch.randint(-4, 5, (2, 5, 6)).float()  # exact in bfloat16, as is 1 / 4
    losses = lambda f: {str(k): (f * c).sum((1, 2)) for k, c in enumerate(coefficients)}  # noqa: E731
    case = zoo.Case(encode, losses, params, (x, y))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = harmony.gram_vjp(*case, engine=harmony.Engine(method="tape", update=update))
        grads = result.pullback(torch.eye(2)[[0, 1, 0, 1]])
    rounded = torch.cat([x, y], dim=1).bfloat16().double()
    truth = {"weight": torch.einsum("kto,bti->bkoi", coefficients.double() / 4, rounded)}
    assert oracle.relative_error(result.gram.double(), oracle.gram_blocks(truth)) < 1e-6
    assert_update(grads, truth, torch.eye(2)[[0, 1, 0, 1]], 1e-6)


def test_parameters_in_half_precision_and_of_several_dtypes():
    case = zoo.transformer_train()
    truth = truth_of(case)
    for dtype, tolerance in ((torch.bfloat16, 0.1), (torch.float16, 0.02)):
        low = cast(case, dtype)
        result = harmony.gram_vjp(*low, engine=harmony.Engine(method="tape"))
        grads = result.pullback(torch.ones(result.gram.shape[:2]))
        assert result.gram.dtype == torch.float32 and {g.dtype for g in grads.values()} == {dtype}
        assert oracle.relative_error(result.gram.double(), oracle.gram_blocks(truth)) < tolerance
        assert_update(grads, truth, torch.ones(result.gram.shape[:2]), tolerance)

    encode = lambda p, x: ((x @ p["w"]).tanh().float() @ p["v"]).double()  # noqa: E731
    case = zoo.Case(encode, zoo.supervised, {"w": zoo.randn(4, 3), "v": torch.randn(3, 2)}, zoo.randn(zoo.B, 4))
    assert_exact(case, truth_of(case), 1e-6)
    assert_fused(case, truth_of(case), harmony.chain(smooth), 1e-6)


# Parameters, inputs and outputs of every kind


def test_views_strides_and_constants():
    base, x = zoo.randn(40), zoo.randn(6, 4, zoo.B).permute(2, 0, 1)
    params = {"w": base[:12].view(4, 3), "v": base[12:24].view(3, 4).T, "s": base[24:30:2]}

    def encode(p, batch):
        h = (batch["x"] @ p["w"]).tanh() + (batch["x"] @ p["v"]).sin() + p["s"]
        return {"all": h, "parts": (h[:, 0], [batch["ids"], batch["x"].sum(1)])}

    def losses(f):
        first, (ids, inputs) = f["parts"]
        return {"all": zoo.over_tokens(f["all"]).sum(1) ** 2, "part": first[:, 0] * ids + first[:, 1] * inputs[:, 0]}

    case = zoo.Case(encode, losses, params, {"x": x, "ids": torch.arange(zoo.B)})
    truth = truth_of(case)
    shared = case.batch | {"none": None, "two": torch.tensor(2)}
    constants = lambda p, b: encode(p, b) | {"name": "tag", "none": b["none"], "six": 3 * int(b["two"])}  # noqa: E731
    for options in ({}, {"chunk_size": 2}, {"update": "tape"}):
        assert_exact(case, truth, **options)
        assert_exact(case._replace(encode=constants, batch=shared), truth, **options)


def test_frozen_parameters_and_the_fast_path_of_attention():
    module = zoo.Pooled().double().eval()
    module.positions.requires_grad_(False)
    for p in module.encoder.layers[0].parameters():
        p.requires_grad_(False)
    x = zoo.randn(6, 5, 8)
    assert torch.backends.mha.get_fastpath_enabled()
    sum(t.mean() for t in zoo.supervised(module(x)).values()).backward()
    expected = [p.grad for p in module.parameters()]
    module.zero_grad()
    harmony.backward(module, x, zoo.supervised, harmony.chain(), engine=harmony.Engine(method="tape"))
    torch.testing.assert_close([p.grad for p in module.parameters()], expected)
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("method", ["tape", "vmap", "loop"])
def test_gradients_are_taken_where_the_caller_has_switched_them_off(method):
    case = zoo.mlp()
    truth = truth_of(case)
    with torch.no_grad():
        assert_exact(case, truth, method=method)
        assert_fused(case, truth, harmony.chain(smooth), method=method)


def test_a_pullback_can_be_called_again_and_calls_do_not_disturb_one_another():
    case = zoo.transformer_train()
    truth = truth_of(case)
    for update in UPDATES:
        result = harmony.gram_vjp(*case, engine=harmony.Engine(method="tape", update=update))
        for _ in range(2):
            weights = torch.rand(result.gram.shape[:2], dtype=torch.float64)
            assert_update(result.pullback(weights), truth, weights)
            harmony.gram_vjp(*case, engine=harmony.Engine(method="tape"))


# Harmonizers, part by part


def test_a_chain_is_samplewise_if_all_its_members_are():
    plain = lambda gram: torch.ones(gram.shape[:2], dtype=gram.dtype)  # noqa: E731
    assert harmony.chain(harmony.curriculum.threshold(0.0), harmony.realign.pcgrad).samplewise
    assert harmony.chain().samplewise and harmony.chain(harmony.chain(smooth), smooth).samplewise
    assert not harmony.chain(harmony.realign.pcgrad, plain).samplewise
    assert not harmony.chain(smooth, harmony.chain(plain)).samplewise


@pytest.mark.parametrize("options", [{}, {"chunk_size": 2}, {"memory": 1}])
def test_a_rule_that_compares_samples_sees_all_of_them(options):
    """A median over the batch: not samplewise, so it is given the whole Gram at once, with the same numbers."""
    case, sizes = zoo.shared_backbone(), []

    def above_median(gram):
        sizes.append(len(gram))
        agreement = harmony.agreement(gram)
        return (agreement >= agreement.median()).to(gram.dtype)[:, None].expand(gram.shape[:2])

    harmonizer = harmony.chain(above_median, harmony.realign.pcgrad)
    assert_fused(case, truth_of(case), harmonizer, **options)
    assert sizes == [zoo.B] * len(sizes)


PARTS = [
    {},
    {"memory": 1, "update": "kept"},
    {"chunk_size": 2},
    {"group_size": 2, "chunk_size": 3},
    {"group_size": 3, "chunk_size": 2},
]


@pytest.mark.parametrize("options", PARTS)
def test_a_schedule_advances_once_a_step(options):
    case = zoo.shared_backbone()
    gamma = harmony.schedule.linear(-1.0, 1.0, steps=2)
    harmonizer = harmony.chain(harmony.curriculum.threshold(gamma), harmony.realign.pcgrad)
    step = harmony.harmonized_grad(case.encode, case.losses, harmonizer, **keywords(method="tape", **options))
    state = harmonizer.init()
    for expected in (1, 2, 3):
        _, state, info = step(case.params, case.batch, state)
        assert int(state[0].step) == expected
    assert int(info.kept) == 0  # at the third step every part has gamma = 1


@pytest.mark.parametrize("options", PARTS)
def test_extras_belong_to_the_samples_of_their_part(options):
    case, seen = zoo.shared_backbone(), []
    group_size, ids = options.get("group_size", 1), torch.arange(zoo.B) + 40

    def update(gram, state, *, terms, ids):
        seen.append((len(gram), terms, ids))
        assert len(terms) == len(ids) and len(gram) == -(-len(ids) // group_size)
        return ids[::group_size, None].to(gram.dtype) * torch.ones(gram.shape[:2], dtype=gram.dtype), state

    recording = harmony.Transform(lambda: (), update, samplewise=True)
    step = harmony.harmonized_grad(case.encode, case.losses, recording, **keywords(method="tape", **options))
    grads, _, info = step(case.params, case.batch, (), ids=ids)
    assert (len(seen) > 1) == ("memory" in options or "chunk_size" in options)
    seen.sort(key=lambda part: int(part[2][0]))  # chunks come from the last on
    assert torch.equal(torch.cat([part_ids for _, _, part_ids in seen]), ids)
    torch.testing.assert_close(torch.cat([terms for _, terms, _ in seen]), info.terms)
    torch.testing.assert_close(info.weights[:, 0], ids[::group_size].double())
    assert_update(grads, truth_of(case), spread(info.weights, group_size, zoo.B))


# What several parameters make together, and chunks that differ from the first


@pytest.mark.parametrize("name", ["weight_norm_linear", "weight_norm_conv", "low_rank_at_zero"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_one_of_several_parameters_that_make_a_weight_can_be_selected(name, number):
    case = zoo.CASES[name]()
    truth = truth_of(case)
    chosen = list(case.params)[number % len(case.params)]
    wrt = lambda n: n == chosen  # noqa: E731
    for update in ("kept", "tape", "backward"):
        result = harmony.gram_vjp(*case, wrt=wrt, engine=harmony.Engine(method="tape", update=update))
        expected = oracle.gram_blocks(select(truth, wrt))
        torch.testing.assert_close(result.gram, expected, rtol=EXACT, atol=EXACT * float(expected.abs().max() + 1e-3))
        weights = torch.rand(result.gram.shape[:2], dtype=torch.float64)
        assert_update(result.pullback(weights), truth, weights)


def test_a_later_chunk_that_cannot_be_recorded_is_looped_over():
    """In the second chunk, and there alone, the samples are looped over."""
    params = {"w": zoo.randn(3, 2)}

    def encode(p, x):
        if x[0, 0] == 7:
            return torch.stack([(row @ p["w"]).tanh() for row in x])
        return (x @ p["w"]).tanh()

    x = zoo.randn(6, 3)
    x[3:, 0] = 7
    case = zoo.Case(encode, zoo.supervised, params, x)
    truth = truth_of(case)
    with pytest.warns(UserWarning, match="cannot record this encoder"):
        result = harmony.gram_vjp(*case, engine=harmony.Engine(chunk_size=3))
        assert oracle.relative_error(result.gram, oracle.gram_blocks(truth)) < EXACT
    with pytest.raises(NotImplementedError, match="a Python loop over the samples"):
        harmony.gram_vjp(*case, engine=harmony.Engine(chunk_size=3, method="tape"))


# Recurrence in float32


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("layout", [{"batch_first": True}, {"bidirectional": True, "num_layers": 2}])
def test_recurrent_layers_in_float32_have_a_closed_form(kind, layout):
    """A fused kernel would run its own backward once for each sample; the numbers are those of the fused one."""
    layer, x = kind(5, 4, **layout), torch.randn(6, 7, 5)
    first = layout.get("batch_first", False)

    def encode(p, x):
        out, _ = torch.func.functional_call(layer, p, (x if first else x.transpose(0, 1),))
        return zoo.over_tokens(out if first else out.transpose(0, 1))

    params = {name: p.detach() for name, p in layer.named_parameters()}
    case = zoo.Case(encode, zoo.supervised, params, x)
    plan = harmony.plan(*case)
    assert plan.engine == "tape" and all(row.choice != "opaque" for row in plan.rows)
    double = cast(case, torch.float64)
    assert_exact(case, truth_of(double), tolerance=1e-4)
    torch.testing.assert_close(harmony.gram_vjp(*case).embeddings, encode(params, x))


# What a reviewer found


class Product(torch.autograd.Function):
    """``x * w``, unknown to the rules."""

    @staticmethod
    def forward(x, w):
        return x * w

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        return grad * w, (grad * x).sum(0)


@pytest.mark.parametrize("case", [
    zoo.Case(lambda p, x: Product.apply(Product.apply(x, p["w"]).tanh(), p["w"]), zoo.supervised,
             {"w": zoo.randn(3)}, zoo.randn(zoo.B, 3)),
    zoo.Case(lambda p, x: torch.addcmul(x, p["w"], p["w"].exp()).tanh(), zoo.supervised,
             {"w": zoo.randn(3)}, zoo.randn(zoo.B, 3)),
    zoo.Case(lambda p, x: (x @ p["w"].t().reshape(3, 8)).tanh() @ p["w"].reshape(8, 3), zoo.supervised,
             {"w": zoo.randn(4, 6)}, zoo.randn(zoo.B, 3)),
    zoo.Case(lambda p, x: (x @ p["w"].reshape(3, 8).t()).tanh() @ p["w"].t().reshape(3, 8), zoo.supervised,
             {"w": zoo.randn(4, 6)}, zoo.randn(zoo.B, 8)),
], ids=["function_twice", "made_of_itself", "reshaped_transpose", "transposed_reshape"])  # fmt: skip
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_parameter_that_reaches_an_op_in_two_ways(case):
    for update in ("kept", "tape", "backward"):
        assert_exact(case, truth_of(case), method="auto", update=update)


def test_a_lone_last_sample_has_one_mask_in_all_its_dropouts():
    """Two dropouts: the second draws where the first has left off."""
    dropout = nn.Dropout(0.5)
    x, params = torch.rand(7, 64, dtype=torch.float64) + 1, {"w": torch.ones(64, dtype=torch.float64)}

    def encode(p, x):
        return dropout(dropout(x * p["w"]))

    result = harmony.gram_vjp(
        encode, lambda f: {"first": f[:, :32].sum(1), "all": f.sum(1)}, params, x, engine=harmony.Engine(chunk_size=2)
    )
    mask = result.embeddings / x  # 0 or 4
    every = mask * x / 7
    half = torch.cat([every[:, :32], torch.zeros(7, 32)], dim=1)
    grads = torch.stack([half, every], dim=1)
    torch.testing.assert_close(result.gram, grads @ grads.mT)
    torch.testing.assert_close(result.pullback(torch.ones(7, 2, dtype=torch.float64))["w"], grads.sum((0, 1)))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_rows_that_are_copied_over_others_are_not_taken_for_their_own():
    """Sample 0 reads what belongs to sample 1: no permutation, and no entry that several samples depend on twice."""
    index = torch.tensor([1, 1, 2, 3, 4])[:, None].expand(-1, 3)
    case = zoo.Case(lambda p, x: (x @ p["w"]).tanh().gather(0, index[: len(x)]), zoo.supervised,
                    {"w": zoo.randn(4, 3)}, zoo.randn(5, 4))  # fmt: skip
    with pytest.raises((ValueError, NotImplementedError)):
        harmony.gram_vjp(*case, engine=harmony.Engine(method="tape"))


def test_a_misspelt_option_is_an_error():
    case = zoo.mlp()
    with pytest.raises(TypeError, match="unexpected keyword argument 'chunk_sise'"):
        harmony.harmonized_grad(case.encode, case.losses, harmony.realign.pcgrad, chunk_sise=2)


# Blocks of groups


class Calls(TorchDispatchMode):
    """Counts the operations, and keeps the largest result of each kind, in bytes."""

    def __init__(self):
        super().__init__()
        self.count, self.largest = 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        self.count += 1
        for x in pytree.tree_leaves(outputs):
            if isinstance(x, torch.Tensor):
                name = func._schema.name
                self.largest[name] = max(self.largest.get(name, 0), x.numel() * x.itemsize)
        return outputs


def deep(layers, size=16, tokens=40):
    """Layers of equal size on tokens, in float32."""
    params = {str(n): torch.randn(128, 128) / 12 for n in range(layers)}

    def encode(p, x):
        for w in p.values():
            x = torch.tanh(x @ w)
        return x.mean(1)

    return zoo.Case(encode, zoo.supervised, params, torch.randn(size, tokens, 128))


def calls_of_a_step(case, **options):
    harmonizer = harmony.chain(harmony.realign.pcgrad_random())
    step = harmony.harmonized_grad(case.encode, case.losses, harmonizer, **keywords(verify="never", **options))
    with Calls() as calls:
        step(case.params, case.batch, harmonizer.init())
    return calls


def test_blocks_follow_the_largest_parameter_and_not_the_sum_of_all():
    """Gradients of one sample over all layers just exceed the memory; those of each layer fit for many samples."""
    case = deep(8)
    of_a_sample = 8 * 128 * 128 * 3 * 4
    ample, little = (calls_of_a_step(case, memory=memory) for memory in (2**30, of_a_sample - 1))
    assert little.count < 1.5 * ample.count
    truth = truth_of(cast(case, torch.float64))
    assert_fused(case, truth, harmony.chain(smooth), tolerance=1e-4, memory=of_a_sample - 1)


def test_few_blocks_where_gradients_are_kept():
    """Rather than call every op once more for each few samples, the update is made of the recorded ops."""
    assert harmony.plan(*deep(2)).update == "tape"  # of few rows there are but products: nothing could be kept
    case = deep(2, tokens=100)
    of_a_sample = 2 * 128 * 128 * 3 * 4
    assert harmony.plan(*case, engine=harmony.Engine(memory=4 * of_a_sample)).update == "kept"
    assert harmony.plan(*case, engine=harmony.Engine(memory=4 * of_a_sample - 1)).update == "tape"


def test_products_of_rows_obey_the_memory():
    params, x = {"w": torch.randn(512, 512) / 20}, torch.randn(32, 30, 512)
    case = zoo.Case(lambda p, x: torch.tanh(x @ p["w"]).mean(1), zoo.supervised, params, x)
    assert {row.choice for row in harmony.plan(*case).rows} == {"ghost"}
    largest = {}
    for memory in (2**30, 4 * 30 * 30 * 4):
        with Calls() as calls:
            harmony.gram_vjp(*case, engine=harmony.Engine(memory=memory, update="tape", verify="never"))
        largest[memory] = calls.largest["aten::bmm"]
    assert largest[4 * 30 * 30 * 4] <= 4 * 30 * 30 * 4 < largest[2**30]
