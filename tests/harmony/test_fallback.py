"""What runs in place of the tape: only where it gives the embeddings of a plain pass; and the verification of both."""

import warnings

import pytest
import torch
from torch import nn

import harmony
from harmony.engines import verification
from harmony.engines.tape import autograd_fields, verify
from tests import zoo


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def losses(f):
    return {"first": f[:, 0] ** 2, "others": f[:, 1:].sum(1)}


def looped(mix=None, dropout=0.0):
    """An encoder that the tape leaves to others, since it loops over the samples; ``mix`` may couple them first."""
    drop = nn.Dropout(dropout)

    def encode(p, x):
        h = x @ p["w"]
        h = h if mix is None else mix(h)
        return torch.stack([drop((row @ p["v"]).tanh()) for row in h])

    return encode


PARAMS = {"w": zoo.randn(4, 3), "v": zoo.randn(3, 5)}
MIXES = {
    "sorted": lambda h: h.sort(0).values,
    "maximum": lambda h: h.cummax(0).values,
    "ordered": lambda h: h[h[:, 0].argsort()],
    "centred": lambda h: h - h.mean(0),
    "centred without a gradient": lambda h: h - h.mean(0).detach(),
    "neighbours": lambda h: h + h.roll(1, 0),
}


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("name", MIXES)
def test_a_fallback_that_encodes_something_else_is_an_error(name, dropout):
    with warnings.catch_warnings(), pytest.raises(ValueError, match="mixes the samples"):
        warnings.simplefilter("ignore")
        harmony.gram_vjp(looped(MIXES[name], dropout), losses, PARAMS, zoo.randn(6, 4))


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_fallback_that_encodes_the_same_is_used(dropout, chunk_size):
    with pytest.warns(UserWarning, match="tape engine cannot record"):
        result = harmony.gram_vjp(
            looped(dropout=dropout), losses, PARAMS, zoo.randn(6, 4), engine=harmony.Engine(chunk_size=chunk_size)
        )
    assert result.gram.isfinite().all() and all(value.isfinite() for value in result.values.values())


@pytest.mark.parametrize("verify", ["auto", "always", "never"])
def test_embeddings_are_compared_however_seldom_backward_passes_are_verified(verify):
    with warnings.catch_warnings(), pytest.raises(ValueError, match="mixes the samples"):
        warnings.simplefilter("ignore")
        harmony.gram_vjp(
            looped(MIXES["centred"]), losses, PARAMS, zoo.randn(6, 4), engine=harmony.Engine(verify=verify)
        )


DROPPING = {
    "attention": lambda: nn.MultiheadAttention(4, 2, 0.5, batch_first=True),
    "encoder layer": lambda: nn.TransformerEncoderLayer(4, 2, 8, 0.5, batch_first=True),
    "recurrent": lambda: nn.GRU(4, 4, num_layers=2, dropout=0.5, batch_first=True),
}


@pytest.mark.parametrize("name", DROPPING)
def test_dropout_inside_of_layers_is_no_reason_to_refuse_a_fallback(name):
    layer = DROPPING[name]().double()
    arguments = (lambda x: (x, x, x)) if name == "attention" else (lambda x: (x,))

    def encode(p, x):
        h = torch.func.functional_call(layer, p, arguments(x))
        return torch.stack([row.mean(0) for row in (h if isinstance(h, torch.Tensor) else h[0])]).cumsum(0).diff(
            dim=0, prepend=torch.zeros(1, 4, dtype=x.dtype)
        )  # fmt: skip

    params = {name: p.detach() for name, p in layer.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gram = harmony.gram_vjp(encode, losses, params, zoo.randn(5, 3, 4)).gram
    assert gram.isfinite().all()


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_nested_tensors_are_left_to_others(layout):
    def encode(p, x):
        nested = torch.nested.nested_tensor(list(x), layout=layout)
        if layout is torch.jagged:
            return torch.stack([t.mean(0) for t in (nested @ p["w"]).unbind()]) @ p["v"]
        return torch.nn.functional.linear(nested, p["w"].mT).to_padded_tensor(0.0).mean(1) @ p["v"]

    x = zoo.randn(5, 6, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gram = harmony.gram_vjp(encode, losses, PARAMS, x).gram
    expected = harmony.gram_vjp(lambda p, x: (x @ p["w"]).mean(1) @ p["v"], losses, PARAMS, x).gram
    torch.testing.assert_close(gram, expected)


def test_samples_of_a_later_chunk_are_compared_too():
    def encode(p, x):
        h = x @ p["w"]
        h = h - h.mean(0).detach() if x[0, 0] == 7 else h
        return torch.stack([row @ p["v"] for row in h])

    x = zoo.randn(6, 4)
    x[3, 0] = 7
    with warnings.catch_warnings(), pytest.raises(ValueError, match="mixes the samples"):
        warnings.simplefilter("ignore")
        harmony.gram_vjp(encode, losses, PARAMS, x, engine=harmony.Engine(chunk_size=3))


def test_other_random_numbers_than_dropout_cannot_be_compared():
    def encode(p, x):
        return torch.stack([(row + torch.randn_like(row)) @ p["w"] for row in x])

    with (
        warnings.catch_warnings(),
        pytest.raises(NotImplementedError, match=r'Engine\(method="loop"\) takes each sample alone'),
    ):
        warnings.simplefilter("ignore")
        harmony.gram_vjp(encode, losses, {"w": PARAMS["w"]}, zoo.randn(5, 4))
    gram = harmony.gram_vjp(
        encode, losses, {"w": PARAMS["w"]}, zoo.randn(5, 4), engine=harmony.Engine(method="loop")
    ).gram
    assert gram.isfinite().all()


# The schedule of verification


@pytest.fixture
def verified(monkeypatch):
    """Numbers of the calls at which a backward pass was verified."""
    calls = []
    original = verify.verify
    monkeypatch.setattr("harmony.engines.tape.engine.verify", lambda *args: (calls.append(1), original(*args))[1])
    monkeypatch.setattr(verification, "_CALLS", type(verification._CALLS)())
    return calls


@pytest.mark.parametrize(
    ("mode", "expected"), [("auto", [1, 2, 4, 8, 16]), ("always", list(range(1, 18))), ("never", [])]
)
def test_backward_passes_are_verified_ever_more_seldom(verified, mode, expected):
    case, steps = zoo.mlp(), []
    for step in range(1, 18):
        verified.clear()
        harmony.gram_vjp(*case, engine=harmony.Engine(verify=mode))
        steps += [step] * len(verified)
    assert steps == expected


def test_another_shape_is_verified_anew(verified):
    case = zoo.raw(lambda x, w: (x @ w).tanh(), zoo.randn(6, 4), w=zoo.randn(4, 3))
    for size in (6, 6, 6, 5, 6):
        harmony.gram_vjp(*case._replace(batch=(case.batch[0][:size],)))
    assert len(verified) == 4  # calls 1, 2, 4 of the first, call 1 of the other


def test_verification_sees_no_mixing_in_numbers_that_are_not_finite():
    x = zoo.randn(6, 4)
    x[1, 2], x[3, 0] = torch.nan, torch.inf
    case = zoo.raw(lambda x, w, v: (x @ w).tanh() @ v, x, w=zoo.randn(4, 3), v=zoo.randn(3, 2))
    result = harmony.gram_vjp(*case, engine=harmony.Engine(verify="always"))
    finite = result.gram.isfinite().all(dim=(1, 2))
    assert finite[[0, 2, 4, 5]].all() and not finite[1]
    assert not result.pullback(torch.ones(6, result.gram.shape[1], dtype=result.gram.dtype))["w"].isfinite().all()


def test_weights_that_are_not_finite_are_not_reported_as_mixing():
    for value in (torch.nan, torch.inf):
        w = zoo.randn(4, 3)
        w[0, 0] = value
        case = zoo.raw(lambda x, w, v: (x @ w).sin() @ v, zoo.randn(6, 4), w=w, v=zoo.randn(3, 2))
        gram = harmony.gram_vjp(*case, engine=harmony.Engine(verify="always")).gram
        assert not gram.isfinite().any() and not harmony.defined(gram).any()


def coarse(case, dtype, mix):
    """An encoder in half precision that the tape leaves to others, which mixes a little or not at all."""
    encode = looped(mix)
    x, params = torch.randn(6, 4), {n: p.float() for n, p in PARAMS.items()}
    if case == "stored":
        return encode, {n: p.to(dtype) for n, p in params.items()}, x.to(dtype)

    def inside(p, x):
        with torch.autocast("cpu", dtype):
            return encode(p, x).float()

    return (inside if case == "inside" else encode), params, x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["around", "inside", "stored"])
def test_weak_mixing_is_seen_in_half_precision(case, dtype):
    """Four percent of a neighbour: less than bfloat16 embeddings may differ by rounding alone."""
    weak = lambda h: h + 0.04 * h.roll(1, 0)  # noqa: E731
    for mix in (weak, None):
        encode, params, x = coarse(case, dtype, mix)
        with warnings.catch_warnings(), torch.autocast("cpu", dtype, enabled=case == "around"):
            warnings.simplefilter("ignore")
            if mix is None:
                assert harmony.gram_vjp(encode, losses, params, x).gram.isfinite().all()
            else:
                with pytest.raises(ValueError, match="mixes the samples"):
                    harmony.gram_vjp(encode, losses, params, x)


# A torch that keeps its graph in another way


@pytest.fixture
def another_torch(monkeypatch):
    x = torch.ones(2, requires_grad=True)
    monkeypatch.setattr(autograd_fields, "_tiny_graph", lambda: {"MulBackward0": (x * x, {"partner": torch.Tensor})})
    autograd_fields.missing_fields.cache_clear()
    yield
    autograd_fields.missing_fields.cache_clear()


def plain(p, x):
    return (x @ p["w"]).tanh() @ p["v"]


def test_this_torch_keeps_its_graph_as_expected():
    assert autograd_fields.missing_fields() == ()


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_a_torch_with_another_graph_falls_back_and_warns_once(another_torch, chunk_size):
    batch = zoo.randn(6, 4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = harmony.gram_vjp(plain, losses, PARAMS, batch, engine=harmony.Engine(chunk_size=chunk_size))
        update = result.pullback(torch.ones(6, 2))
    assert [w for w in caught if "keeps its autograd graph in another way" in str(w.message)] == caught[:1] == caught
    expected = harmony.gram_vjp(plain, losses, PARAMS, batch, engine=harmony.Engine(method="vmap"))
    torch.testing.assert_close(result.gram, expected.gram)
    torch.testing.assert_close(update, expected.pullback(torch.ones(6, 2)))


def test_a_torch_with_another_graph_is_an_error_where_the_tape_was_asked_for(another_torch):
    message = rf"torch {torch.__version__.split('+')[0]}.*another way.*MulBackward0\._saved_partner"
    with pytest.raises(NotImplementedError, match=message):
        harmony.gram_vjp(plain, losses, PARAMS, zoo.randn(6, 4), engine=harmony.Engine(method="tape"))
