"""What is no number in weights, inputs or losses stays the model's own affair: NaN in the Gram, not an error."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import harmony
from tests import zoo
from tests.harmony import oracle
from tests.harmony.options import keywords

B = 5
SPOILED = 2
BROKEN = pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=["nan", "inf", "-inf"])
PATHS = [
    {"method": "tape", "update": "kept"}, {"method": "tape", "update": "tape"}, {"update": "backward"},
    {"chunk_size": 2}, {"group_size": 2, "chunk_size": 3}, {"memory": 1}, {"verify": "always"}, {"method": "vmap"},
    {"method": "loop"}, {"attribution": "anchor"}, {"attribution": "loss"}, {"space": "features"},
    {"space": "features", "chunk_size": 2},
]  # fmt: skip


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def packed(x, w, v):
    """The tokens of a mask, one after the other: places are found on the batch at hand."""
    mask = x[..., 0] > -0.5
    y = x.new_zeros(*mask.shape, v.shape[1])
    y[mask] = (x[mask] @ w).tanh() @ v
    return zoo.over_tokens(y)


def sorted_tokens(x, w, v):
    """Tokens in an order that depends on the data."""
    h = x @ w
    return zoo.over_tokens(h.gather(1, h[..., :1].argsort(1).expand_as(h)).tanh() @ v)


def attended(x, w, v):
    """Attention without parameters between two layers."""
    h = (x @ w)[:, None]
    return zoo.over_tokens(F.scaled_dot_product_attention(h, h, h)[:, 0] @ v)


def recurrent():
    layer = nn.GRU(4, 5, batch_first=True).double()
    params = {n: p.detach() for n, p in layer.named_parameters()}
    encode = lambda p, x: zoo.over_tokens(torch.func.functional_call(layer, p, (x,))[0])  # noqa: E731
    return zoo.Case(encode, zoo.supervised, params, zoo.randn(B, 6, 4))


def convolved():
    net = nn.Sequential(nn.Conv1d(4, 6, 3), nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv1d(6, 3, 1)).double()
    params = {n: p.detach() + 0.1 for n, p in net.named_parameters()}
    encode = lambda p, x: zoo.over_space(torch.func.functional_call(net, p, (x.mT,)))  # noqa: E731
    return zoo.Case(encode, zoo.supervised, params, zoo.randn(B, 6, 4))


def of_two(encode):
    """A case of a function of x, w and v."""
    params = {"w": zoo.randn(4, 5), "v": zoo.randn(5, 3)}
    return zoo.Case(lambda p, x: encode(x, p["w"], p["v"]), zoo.supervised, params, zoo.randn(B, 6, 4))


ENCODERS = {
    "linear": lambda: of_two(lambda x, w, v: zoo.over_tokens((x @ w).tanh() @ v)),
    "norm": lambda: of_two(lambda x, w, v: zoo.over_tokens(F.layer_norm(x @ w, (5,)) @ v)),
    "attention": lambda: of_two(attended),
    "packed": lambda: of_two(packed),
    "sorted": lambda: of_two(sorted_tokens),
    "convolution": convolved,
    "recurrent": recurrent,
}


def call(case, **options):
    """``gram_vjp``, and its update by equal weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = harmony.gram_vjp(*case, **keywords(**options))
        return result, result.pullback(torch.ones(result.gram.shape[:2], dtype=result.gram.dtype))


def assert_same(got, expected):
    """Equal where these are numbers, and no number where the other is none."""
    assert torch.equal(got.isfinite(), expected.isfinite())
    finite = expected.isfinite()
    if finite.any():
        assert oracle.relative_error(got[finite], expected[finite]) < 1e-9


@BROKEN
@pytest.mark.parametrize("options", PATHS, ids=str)
@pytest.mark.parametrize("name", ENCODERS)
def test_one_input_that_is_no_number(name, options, value):
    """The other samples have the Gram blocks they would have had, by a loop over samples that are each alone."""
    case = ENCODERS[name]()
    spoiled = case.batch.clone()
    spoiled[SPOILED, 0, 1] = value
    case = case._replace(batch=spoiled)
    if options.get("attribution") == "loss":  # every gradient has a part in every sample's encoder: 0 times NaN
        call(case, **options)
        return
    result, update = call(case, **options)
    expected, expected_update = call(case, **options | {"method": "loop", "chunk_size": None})
    assert_same(result.gram, expected.gram)
    for n, g in expected_update.items():
        assert torch.equal(update[n].isfinite(), g.isfinite()), n


@BROKEN
@pytest.mark.parametrize("options", PATHS, ids=str)
@pytest.mark.parametrize("name", ENCODERS)
def test_a_weight_that_is_no_number(name, options, value):
    case = ENCODERS[name]()
    first = next(iter(case.params))
    spoiled = case.params[first].clone()
    spoiled.view(-1)[0] = value
    case = case._replace(params=case.params | {first: spoiled})
    result, _ = call(case, **options)
    plain = case.encode(case.params, case.batch)
    assert torch.equal(result.embeddings.isfinite(), plain.isfinite())
    if plain.isnan().all():
        assert not result.gram.isfinite().any()
        assert not harmony.defined(result.gram).any()


@pytest.mark.parametrize("options", PATHS, ids=str)
def test_a_loss_that_is_no_number(options):
    """One term is the root of a negative number, the other is fine."""
    case = ENCODERS["linear"]()._replace(losses=lambda f: {"root": (f[:, 0] - 9).sqrt(), "norm": f.pow(2).sum(1)})
    result, update = call(case, **options)
    assert result.terms[:, 0].isnan().all() and result.terms[:, 1].isfinite().all()
    assert not result.gram[:, 0, 0].isfinite().any() and result.gram[:, 1, 1].isfinite().all()
    assert not harmony.defined(result.gram).any()
    assert all(not g.isfinite().all() for g in update.values())


@BROKEN
@pytest.mark.parametrize("options", [{}, {"chunk_size": 2}, {"verify": "always"}, {"method": "vmap"}], ids=str)
def test_a_step_on_a_spoiled_sample(options, value):
    """It is not defined, its agreement 0; those of the others are what they are without it."""
    case = ENCODERS["linear"]()
    harmonizer = harmony.chain(harmony.realign.pcgrad)
    step = harmony.harmonized_grad(case.encode, case.losses, harmonizer, **keywords(**options))
    clean = step(case.params, case.batch, harmonizer.init())[2]
    spoiled = case.batch.clone()
    spoiled[SPOILED] = value
    info = step(case.params, spoiled, harmonizer.init())[2]
    others = torch.arange(B) != SPOILED
    assert clean.defined.all() and torch.equal(info.defined, others)
    assert info.agreement[SPOILED].isnan()
    torch.testing.assert_close(info.agreement[others], clean.agreement[others])


@BROKEN
@pytest.mark.parametrize("name", ["batch_mean_subtracted", "rolled_over_batch", "softmax_over_batch"])
def test_mixing_is_still_found_beside_a_spoiled_sample(name, value):
    case = zoo.MIXING[name]()
    spoiled = case.batch.clone()
    spoiled[SPOILED] = value
    with pytest.raises(ValueError, match="mixes the samples"):
        harmony.gram_vjp(case.encode, case.losses, case.params, spoiled)


@BROKEN
@pytest.mark.parametrize("name", ENCODERS)
def test_check_of_a_spoiled_model_says_nothing_of_mixing(name, value):
    case = ENCODERS[name]()
    first = next(iter(case.params))
    spoiled = case.params[first].clone()
    spoiled.view(-1)[0] = value
    try:
        harmony.check(case.encode, case.losses, case.params | {first: spoiled}, case.batch)
    except ValueError as error:
        assert "mixes" not in str(error) and "not finite" in str(error)
