"""``wrt="shared"``: the Gram over the parameters that every loss reaches; and a warning where there are none."""

import warnings

import pytest
import torch
from torch import nn

import harmony
from tests import zoo
from tests.harmony import oracle
from tests.harmony.options import keywords

PARAMS = {name: zoo.randn(4, 4) for name in ("video", "audio", "text", "trunk", "adapter")}
BATCH = {name: zoo.randn(5, 4) for name in ("v", "a", "t")}


@pytest.fixture(autouse=True)
def forget():
    """Every test is the first to compare its losses."""
    from harmony import parameters

    parameters._COMPARED.clear()


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
    result = harmony.gram_vjp(*CASE, wrt="shared", **keywords(**options))
    torch.testing.assert_close(result.gram, expected)
    whole = harmony.gram_vjp(*CASE, **keywords(**options))
    weights = torch.rand(result.gram.shape[:2], dtype=torch.float64)
    torch.testing.assert_close(result.pullback(weights), whole.pullback(weights))  # the update is over all of them
    harmonizer = harmony.chain(harmony.realign.pcgrad)
    _, _, info = harmony.harmonized_grad(encode, losses, harmonizer, wrt="shared", **keywords(**options))(
        PARAMS, BATCH, harmonizer.init()
    )
    torch.testing.assert_close(info.gram, expected)


@pytest.mark.parametrize("options", OPTIONS)
def test_labels_of_parameters_that_are_not_shared_vanish(options):
    attribution, group_size = options.get("attribution", "activation"), options.get("group_size", 1)
    truth = oracle.per_sample_gradients(*CASE, attribution=attribution)
    label_of = {"audio": "stem", "text": "text", "video": "stem", "adapter": "deep"}  # none for the trunk
    result = harmony.gram_vjp(*CASE, wrt="shared", labels=label_of.get, **keywords(**options))
    assert set(result.gram) == {"stem", "deep"}
    for label, name in (("stem", "video"), ("deep", "adapter")):
        torch.testing.assert_close(result.gram[label], oracle.gram_blocks({name: truth[name]}, group_size))

    if attribution == "anchor":
        truth = oracle.per_sample_gradients(*CASE, attribution="loss")
    weights = {label: torch.rand(gram.shape[:2], dtype=torch.float64) for label, gram in result.gram.items()}
    weight_of = {"video": weights["stem"], "adapter": weights["deep"]}
    mean = (weights["stem"] + weights["deep"]) / 2
    update = result.pullback(weights)
    for name, grads in truth.items():
        rows = weight_of.get(name, mean).repeat_interleave(group_size, 0)[: len(grads)]
        torch.testing.assert_close(update[name], torch.einsum("bk,bk...->...", rows, grads))

    harmonizer = harmony.chain(harmony.layerwise(harmony.realign.pcgrad))
    step = harmony.harmonized_grad(encode, losses, harmonizer, wrt="shared", labels=label_of.get, **keywords(**options))
    _, _, info = step(PARAMS, BATCH, harmonizer.init())
    torch.testing.assert_close(info.gram_of, result.gram)
    torch.testing.assert_close(info.gram, result.gram["stem"] + result.gram["deep"])


def test_shared_parameters_without_a_label_are_an_error():
    only_sound = lambda name: "sound" if name == "audio" else None  # noqa: E731
    with pytest.raises(ValueError, match=r"none of the parameters that every loss reaches: video, trunk, adapter\."):
        harmony.gram_vjp(*CASE, wrt="shared", labels=only_sound)


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
    rows = {row.name: row.choice for row in harmony.plan(*CASE, wrt="shared", labels=lambda name: name).rows}
    assert rows["audio"] == rows["text"] == "update only" and rows["trunk"] != "update only"
    harmony.check(*CASE, wrt="shared", labels=lambda name: name)


def apart(p, batch):
    return {"v": batch["v"] @ p["video"], "a": batch["a"] @ p["audio"]}


def of_each(f):
    return {"v": f["v"].sin().sum(1), "a": f["a"].cos().sum(1)}


def test_nothing_shared_is_an_error_where_it_was_asked_for_and_a_warning_elsewhere():
    params = {name: PARAMS[name] for name in ("video", "audio")}
    with pytest.raises(ValueError, match=r"needs a parameter.*'v' reaches video; 'a' reaches audio"):
        harmony.gram_vjp(apart, of_each, params, BATCH, wrt="shared")
    step = lambda: harmony.gram_vjp(apart, of_each, params, BATCH)  # noqa: E731
    with pytest.warns(UserWarning, match="No parameter of the Gram is reached by both losses, 'v' and 'a'"):
        step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step()  # said once for each line
        harmony.gram_vjp(*CASE)  # something is shared


@pytest.mark.parametrize("call", ["gram_vjp", "harmonized_grad", "cagrad", "backward"])
def test_the_warning_names_each_pair_at_the_line_of_the_user(call):
    """Two losses share a trunk, the third has a tower of its own: the agreement is 0 at most, whatever the data."""
    module = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("trunk", "b", "own")}).double()
    params = {name: p.detach() for name, p in module.named_parameters()}
    forward = lambda m, x: {"a": m["trunk"](x), "b": m["b"](m["trunk"](x)), "c": m["own"](x)}  # noqa: E731
    pure = lambda p, x: torch.func.functional_call(Caller(module, forward), p, (x,))  # noqa: E731
    objective = lambda f: {k: f[k].sin().sum(1) for k in "abc"}  # noqa: E731
    x, method = zoo.randn(5, 4), harmony.realign.cagrad if call == "cagrad" else harmony.realign.pcgrad
    with pytest.warns(UserWarning, match="'a' and 'c'; 'b' and 'c': their gradients are orthogonal") as caught:
        if call == "backward":
            harmony.backward(module, x, objective, method, forward=forward)
        elif call == "gram_vjp":
            harmony.gram_vjp(pure, objective, params, x)
        else:
            harmony.harmonized_grad(pure, objective, method)(params, x, ((),))
    assert [w.filename for w in caught] == [__file__]


class Caller(nn.Module):
    """A forward function as a module, whose parameters have the names of those inside."""

    def __init__(self, module, forward):
        super().__init__()
        self.call = forward
        for name, child in module.items():
            self.add_module(name, child)

    def forward(self, x):
        return self.call(dict(self.named_children()), x)


def test_losses_that_share_nothing_within_wrt_are_warned_of_and_labels_are_one_gram():
    with pytest.warns(UserWarning, match="'va' and 'vt'"):
        harmony.gram_vjp(*CASE, wrt=lambda name: name in ("audio", "text"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        harmony.gram_vjp(*CASE, labels=lambda name: name)
        harmony.gram_vjp(*CASE, wrt=lambda name: name == "text")  # one loss alone: not defined, and it says so


def routed(p, batch):
    """The samples that are marked go through an expert, which is in the graph only where there are some."""
    h, marked = batch["x"] @ p["stem"], batch["expert"] > 0
    if marked.any():
        h = torch.where(marked[:, None], (h @ p["expert"]).tanh(), h)
    return {"left": h @ p["left"], "right": h @ p["right"]}


@pytest.mark.parametrize("options", [{}, {"method": "loop"}, {"chunk_size": 2}, {"chunk_size": 2, "method": "loop"}])
@pytest.mark.parametrize("attribution", ["activation", "loss"])
@pytest.mark.parametrize("sample", [0, 3, 5])
def test_what_any_sample_reaches_counts_wherever_it_stands(options, attribution, sample):
    params = {name: zoo.randn(4, 4) for name in ("stem", "expert", "left", "right", "idle")}
    batch = {"x": zoo.randn(6, 4), "expert": torch.zeros(6, dtype=torch.long)}
    batch["expert"][sample] = 1
    objective = lambda f: {name: f[name].sin().sum(1) for name in f}  # noqa: E731
    truth = oracle.per_sample_gradients(routed, objective, params, batch, attribution=attribution)
    expected = oracle.gram_blocks({name: truth[name] for name in ("stem", "expert")})
    options = options | {"attribution": attribution}
    gram = harmony.gram_vjp(routed, objective, params, batch, wrt="shared", **keywords(**options)).gram
    torch.testing.assert_close(gram, expected)


@pytest.mark.parametrize("method", ["tape", "vmap", "loop"])
def test_a_loss_without_a_gradient_takes_no_part(method):
    objective = lambda f: losses(f) | {"none": torch.zeros(5, dtype=torch.float64)}  # noqa: E731
    gram = harmony.gram_vjp(encode, objective, PARAMS, BATCH, wrt="shared", engine=harmony.Engine(method=method)).gram
    torch.testing.assert_close(gram[:, :2, :2], harmony.gram_vjp(*CASE, wrt="shared").gram)
    assert not gram[:, 2].any()
    nothing = lambda f: {"a": f["v"].detach().sum(1), "b": f["a"].detach().sum(1)}  # noqa: E731
    assert not harmony.gram_vjp(
        encode, nothing, PARAMS, BATCH, wrt="shared", engine=harmony.Engine(method=method)
    ).gram.any()


@pytest.mark.parametrize("method", ["tape", "vmap"])
@pytest.mark.parametrize("wrt", [None, "shared"])
def test_the_encoder_runs_once_and_draws_as_often_as_ever(method, wrt):
    calls = []

    def random(p, batch):
        calls.append(1)
        return {name: torch.dropout(f, 0.5, True) for name, f in encode(p, batch).items()}

    torch.manual_seed(0)
    harmony.gram_vjp(random, losses, PARAMS, BATCH, wrt=wrt, engine=harmony.Engine(method=method))
    drawn = torch.rand(())
    torch.manual_seed(0)
    harmony.gram_vjp(random, losses, PARAMS, BATCH, wrt=lambda name: True, engine=harmony.Engine(method=method))
    assert len(calls) == 2 and drawn == torch.rand(())


def test_other_words_and_spaces_are_refused():
    with pytest.raises(ValueError, match="'last_projection' or a function of parameter names; got 'trunk'"):
        harmony.gram_vjp(*CASE, wrt="trunk")
    with pytest.raises(ValueError, match="takes the leaves that every loss reaches by itself"):
        harmony.gram_vjp(*CASE, wrt="shared", space="features")
