"""In chunks an encoder that mixes samples is another model: refused, also where no gradient per sample is asked for."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import harmony
from tests import zoo
from tests.harmony import oracle
from tests.harmony.options import keywords

B = 6


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def normalised_below_the_python_api(h):
    """Batch statistics that no guard on ``F.batch_norm`` sees."""
    return torch.native_batch_norm(h, None, None, None, None, True, 0.1, 1e-5)[0]


def needs_two(h):
    """What no other engine can run: a sample alone is an error of its own."""
    if len(h) < 2:
        raise RuntimeError("one sample has no deviation")
    return h - h.mean(0)


MIXES = {
    "mean": lambda h: h - h.mean(0),
    "roll": lambda h: h + h.roll(1, 0),
    "sort": lambda h: h.sort(0)[0],
    "cummax": lambda h: h.cummax(0)[0],
    "similarities": lambda h: (h @ h.mT).softmax(-1) @ h,
    "largest norm": lambda h: h / h.norm(dim=1).max(),
    "native batch norm": normalised_below_the_python_api,
    "at least two samples": needs_two,
}
CHUNKED = [
    {"group_size": B, "chunk_size": 3}, {"group_size": 4, "chunk_size": 2}, {"group_size": 4, "chunk_size": 3},
    {"space": "features", "chunk_size": 4}, {"attribution": "loss", "chunk_size": 3}, {"chunk_size": 1},
    {"space": "features", "chunk_size": 1}, {"group_size": 2, "chunk_size": 1}, {},
    {"space": "features", "attribution": "loss", "chunk_size": 1, "method": "vmap"},
]  # fmt: skip
TOGETHER = [
    {"group_size": B}, {"group_size": 9}, {"group_size": B, "chunk_size": B}, {"space": "features"},
    {"space": "features", "attribution": "anchor"}, {"attribution": "loss"}, {"group_size": B, "attribution": "anchor"},
]  # fmt: skip


def mixing(name):
    mix = MIXES[name]
    params = {"w": zoo.randn(4, 5), "v": zoo.randn(5, 3)}
    return zoo.Case(lambda p, x: mix(x @ p["w"]).tanh() @ p["v"], zoo.supervised, params, zoo.randn(B, 4))


def batch_gradients(case):
    """Gradients {name: (K, *shape)} of every loss over the batch, by plain autograd."""
    params = {n: p.detach().clone().requires_grad_() for n, p in case.params.items()}
    terms = case.losses(case.encode(params, case.batch))
    rows = [torch.autograd.grad(t.mean(), list(params.values()), retain_graph=True) for t in terms.values()]
    return {n: torch.stack(g) for n, g in zip(params, zip(*rows, strict=True), strict=True)}


@pytest.mark.parametrize("options", CHUNKED, ids=str)
@pytest.mark.parametrize("name", MIXES)
def test_mixing_is_refused_in_chunks(name, options):
    with pytest.raises(ValueError, match="mixes the samples") as caught:
        harmony.gram_vjp(*mixing(name), **keywords(**options))
    assert "group_size=B" in str(caught.value) and "without chunks" in str(caught.value)


@pytest.mark.parametrize("options", TOGETHER, ids=str)
@pytest.mark.parametrize("name", MIXES)
def test_mixing_is_allowed_where_no_sample_is_taken_alone(name, options):
    case = mixing(name)
    result = harmony.gram_vjp(*case, **keywords(**options))
    grads = batch_gradients(case)
    update = result.pullback(torch.tensor([[0.5, 2.0, 1.0]], dtype=torch.float64).expand(len(result.gram), -1))
    expected = {n: torch.einsum("k,k...->...", torch.tensor([0.5, 2.0, 1.0]).double(), g) for n, g in grads.items()}
    assert oracle.error_per_parameter(update, expected) < 1e-9
    torch.testing.assert_close(result.embeddings, case.encode(case.params, case.batch))
    if options.get("group_size", 1) >= B:
        assert oracle.relative_error(result.gram, oracle.gram_blocks({n: g[None] for n, g in grads.items()})) < 1e-9


def branch(x, w, v):
    """Tokens in an order that depends on the data, sample by sample."""
    h = (x @ w).tanh()
    return zoo.over_tokens(torch.stack([row[row[:, 0].argsort()] for row in h]) @ v)


def packed(x, w, v):
    """The tokens above zero of all samples, one after the other."""
    mask = x[..., 0] > 0
    y = x.new_zeros(*mask.shape, v.shape[1])
    y[mask] = (x[mask] @ w).tanh() @ v
    return zoo.over_tokens(y)


def alike(x, w, v):
    """A network that is applied to every sample in a loop."""
    return torch.stack([((row @ w).tanh() @ v).mean(0) for row in x])


@pytest.mark.parametrize("options", [o for o in CHUNKED if o.get("method") != "vmap"], ids=str)
@pytest.mark.parametrize("encode", [branch, packed, alike])
def test_what_keeps_samples_apart_is_not_refused_in_chunks(encode, options):
    """Encoders that the tape knows nothing of, or only for the batch at hand."""
    case = zoo.raw(encode, zoo.randn(B, 4, 4), w=zoo.randn(4, 5), v=zoo.randn(5, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = harmony.gram_vjp(*case, **keywords(**options))
        whole = harmony.gram_vjp(*case, **keywords(**options | {"chunk_size": None, "method": "loop"}))
    weights = torch.rand(result.gram.shape[:2], dtype=result.gram.dtype)
    assert oracle.relative_error(result.gram, whole.gram) < 1e-9
    assert oracle.error_per_parameter(result.pullback(weights), whole.pullback(weights)) < 1e-9


@pytest.mark.parametrize("options", [o for o in CHUNKED if o.get("method") != "vmap"], ids=str)
def test_random_numbers_in_chunks_go_on_as_if_nothing_had_been_looked_at(options):
    """The seen pass draws the masks: the encoder is linear, so that they can be read off the embeddings."""
    dropout, x = nn.Dropout(0.5), torch.rand(B, 4, dtype=torch.float64) + 1
    case = zoo.Case(lambda p, x: dropout(x * p["w"]), lambda f: {"all": f.sum(1)}, {"w": torch.ones(4).double()}, x)
    result = harmony.gram_vjp(*case, **keywords(**options))
    grads = result.pullback(torch.ones(len(result.gram), 1, dtype=torch.float64))
    torch.testing.assert_close(grads["w"], result.embeddings.sum(0) / B)
    assert 0 < (result.embeddings == 0).sum() < result.embeddings.numel()


@pytest.mark.parametrize("call", [
    lambda i, w: F.embedding(i, w, scale_grad_by_freq=True), lambda i, w: torch.embedding(w, i, -1, True),
    lambda i, w: F.embedding_bag(i, w, scale_grad_by_freq=True),
    lambda i, w: F.embedding_bag(i, w, None, None, 2, True),
])  # fmt: skip
def test_words_counted_over_the_batch(call):
    case = zoo.raw(lambda i, w: call(i, w).flatten(1)[:, :3].tanh(), torch.randint(4, (B, 3)), w=zoo.randn(4, 5))
    for options in ({}, {"method": "loop"}, {"method": "vmap"}, {"space": "features", "chunk_size": 3}):
        with pytest.raises(ValueError, match=r"scale_grad_by_freq=True.*group_size=B"):
            harmony.gram_vjp(*case, **keywords(**options))
    pullback = harmony.gram_vjp(*case, group_size=B).pullback
    update = pullback(torch.ones(1, 3, dtype=torch.float64))
    assert oracle.error_per_parameter(update, {n: g.sum(0) for n, g in batch_gradients(case).items()}) < 1e-12
