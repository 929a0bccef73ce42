"""``wrt="shared"``: the Gram over the parameters that every loss reaches; and a warning where there are none."""

import warnings

import pytest
import torch
from torch import nn

import harmony
from tests import zoo
from tests.harmony import oracle

PARAMS = {name: zoo.randn(4, 4) for name in ("video", "audio", "text", "trunk", "adapter")}
BATCH = {name: zoo.randn(5, 4) for name in ("v", "a", "t")}


@pytest.fixture(autouse=True)
def forget():
    """Every test is the first to compare its losses."""
    from harmony import gram

    gram._COMPARED.clear()


def encode(p, batch):
    """Three stems; a trunk for video and sound, an adapter that all pass."""
    trunk = lambda x, stem: (x @ stem @ p["trunk"]).tanh() @ p["adapter"]  # noqa: E731
    return {
        "v": trunk(batch["v"], p["video"]),
        "a": trunk(batch["a"], p["audio"]),
        "t": batch["t"] @ p["text"] @ p["adapter"],
    }


def losses(f):
    return {"va": (f["v"] * f["a"]).sum(1), "vt": (f["v"] * f["t"]).sum(1).sin()}


CASE = zoo.Case(encode, losses, PARAMS, BATCH)
OPTIONS = [
    {}, {"method": "tape", "update": "tape"}, {"method": "vmap"}, {"method": "loop"}, {"chunk_size": 2},
    {"group_size": 2}, {"memory": 1}, {"attribution": "anchor"}, {"attribution": "loss"},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS)
def test_the_gram_is_that_of_the_shared_parameters(options):
    attribution = options.get("attribution", "activation")
    truth = oracle.per_sample_gradients(*CASE, attribution=attribution)
    shared = {name: truth[name] for name in ("video", "trunk", "adapter")}
    expected = oracle.gram_blocks(shared, options.get("group_size", 1))
    gram, pullback = harmony.gram_vjp(*CASE, wrt="shared", **options)[1:]
    torch.testing.assert_close(gram, expected)
    whole = harmony.gram_vjp(*CASE, **options)[2]
    weights = torch.rand(gram.shape[:2], dtype=torch.float64)
    torch.testing.assert_close(pullback(weights), whole(weights))  # the update is over all of them
    harmonizer = harmony.chain(harmony.realign.pcgrad)
    _, _, info = harmony.harmonized_grad(encode, losses, harmonizer, wrt="shared", **options)(
        PARAMS, BATCH, harmonizer.init()
    )
    torch.testing.assert_close(info.gram, expected)


def test_frozen_parameters_do_not_dilute_it():
    module = nn.ModuleDict({"base": nn.Linear(4, 4), "adapter": nn.Linear(4, 4), "head": nn.Linear(4, 2)}).double()
    module["base"].requires_grad_(False)
    forward = lambda m, x: {"h": m["adapter"](m["base"](x)), "g": m["head"](m["adapter"](m["base"](x)))}  # noqa: E731
    objective = lambda f: {"h": f["h"].sin().sum(1), "g": f["g"].pow(2).sum(1)}  # noqa: E731
    x = zoo.randn(5, 4)
    info, _ = harmony.backward(module, x, objective, harmony.realign.pcgrad, forward=forward, wrt="shared")
    only = lambda name: name.startswith("adapter")  # noqa: E731
    expected, _ = harmony.backward(module, x, objective, harmony.realign.pcgrad, forward=forward, wrt=only)
    torch.testing.assert_close(info.gram, expected.gram)
    assert module["base"].weight.grad is None


def test_plan_and_check_take_it_too():
    rows = {row.name: row.choice for row in harmony.plan(*CASE, wrt="shared").rows}
    assert rows["audio"] == rows["text"] == "update only" and rows["trunk"] != "update only"
    harmony.check(*CASE, wrt="shared")


def apart(p, batch):
    return {"v": batch["v"] @ p["video"], "a": batch["a"] @ p["audio"]}


def of_each(f):
    return {"v": f["v"].sin().sum(1), "a": f["a"].cos().sum(1)}


def test_nothing_shared_is_an_error_where_it_was_asked_for_and_a_warning_elsewhere():
    params = {name: PARAMS[name] for name in ("video", "audio")}
    with pytest.raises(ValueError, match=r"needs a parameter.*'v' reaches video; 'a' reaches audio"):
        harmony.gram_vjp(apart, of_each, params, BATCH, wrt="shared")
    with pytest.warns(UserWarning, match="no two losses reach a parameter of the Gram in common"):
        harmony.gram_vjp(apart, of_each, params, BATCH)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        harmony.gram_vjp(apart, of_each, params, BATCH)  # said once
        harmony.gram_vjp(*CASE)  # something is shared


def test_other_words_and_spaces_are_refused():
    with pytest.raises(ValueError, match="wrt must be 'shared' or a function of parameter names; got 'trunk'"):
        harmony.gram_vjp(*CASE, wrt="trunk")
    with pytest.raises(ValueError, match="takes the leaves that every loss reaches by itself"):
        harmony.gram_vjp(*CASE, wrt="shared", space="features")
