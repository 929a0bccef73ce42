"""What ``plan`` says is done, and what ``check`` finds."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import harmony
from harmony.engines.tape import grad_rules
from harmony.engines.tape.param_use import BroadcastUse, sum_to
from harmony.engines.tape.per_sample import PerSampleGradients
from tests import zoo
from tests.harmony.options import keywords


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


CLOSED = ("instantiate", "ghost")
OPAQUE = {"bilinear", "embedding_bag", "maximum", "lerp", "generalised_mean", "in_place", "custom_function"}


# Plan


def rows_of(case, **options):
    return {row.name: row for row in harmony.plan(*case, **keywords(**options)).rows}


def test_a_plan_lists_every_parameter_once_with_its_shape_and_prints():
    case = zoo.transformer_train()
    plan = harmony.plan(*case)
    assert plan.engine == "tape" and "closed form for every use" in plan.reason
    assert [row.name for row in plan.rows] == list(case.params)
    assert all(row.shape == tuple(case.params[row.name].shape) for row in plan.rows)
    assert all(row.choice in CLOSED and row.flops > 0 and row.bytes_moved > 0 for row in plan.rows)
    first, second, header, *table = str(plan).splitlines()
    assert first == f"engine tape: {plan.reason}" and second == f"update {plan.update}"
    assert header.split() == ["parameter", "shape", "ops", "choice", "MFLOP", "MB"]
    assert [line.split()[0] for line in table if not line.startswith("cheaper: ")] == list(case.params)


@pytest.mark.filterwarnings("ignore:.*has no closed form:UserWarning")
@pytest.mark.parametrize("name", zoo.CASES)
def test_nothing_in_the_zoo_is_opaque_but_what_is_known(name):
    choices = {row.choice for row in harmony.plan(*zoo.CASES[name](), engine=harmony.Engine(method="tape")).rows}
    assert ("opaque" in choices) == (name in OPAQUE)


def test_the_choice_follows_from_the_cost():
    """Few rows under a wide layer: products of rows. Many rows under a narrow one: gradients."""
    wide = zoo.raw(lambda x, w: x @ w, torch.randn(zoo.B, 1, 300)[:, 0], w=torch.randn(300, 300))
    narrow = zoo.raw(lambda x, w: zoo.over_tokens(x @ w), torch.randn(zoo.B, 300, 4), w=torch.randn(4, 4))
    assert rows_of(wide)["w"].choice == "ghost"
    assert rows_of(narrow)["w"].choice == "instantiate"
    assert rows_of(wide)["w"].flops < 2 * 300 * 300 * zoo.B * 10


def test_the_ops_that_use_a_parameter_are_counted():
    case = zoo.shared_backbone()  # one backbone, three modalities
    rows = rows_of(case)
    assert rows["backbone.1.weight"].ops == "Addmm 3" and rows["scale"].ops == "Mul 3"
    assert rows["tokens.video"].ops == "Add 1"


def test_what_is_not_in_the_gram_is_update_only_and_what_is_not_used_says_so():
    case = zoo.never_used()
    assert {name: row.choice for name, row in rows_of(case).items()} == {"w": "instantiate", "spare": "unused"}
    choices = {name: row.choice for name, row in rows_of(zoo.mlp(), wrt=lambda name: name == "2.bias").items()}
    assert choices.pop("2.bias") in CLOSED
    assert set(choices.values()) == {"update only"}
    detached = {name: row.choice for name, row in rows_of(zoo.only_detached()).items()}
    assert detached["w"] in CLOSED and detached["frozen"] == "unused"


@pytest.mark.parametrize("update", ["kept", "tape", "backward"])
def test_the_update_that_is_asked_for_is_planned(update):
    assert harmony.plan(*zoo.mlp(), engine=harmony.Engine(update=update)).update == update


def test_little_memory_or_a_small_part_of_the_parameters_change_the_update():
    case = zoo.transformer_train()
    assert harmony.plan(*case).update == "kept"
    assert harmony.plan(*case, engine=harmony.Engine(memory=1)).update == "tape"
    assert harmony.plan(*case, wrt=lambda name: name.startswith("encoder.layers.1.linear2")).update == "backward"


@pytest.mark.filterwarnings("ignore:.*has no closed form:UserWarning")
def test_other_engines_are_planned_with_a_reason():
    def looped(p, x):
        return torch.stack([row @ p["w"] for row in x])

    loop = zoo.Case(looped, zoo.supervised, {"w": zoo.randn(4, 3)}, zoo.randn(zoo.B, 4))
    for method in ("vmap", "loop"):
        plan = harmony.plan(*zoo.mlp(), engine=harmony.Engine(method=method))
        assert (plan.engine, plan.reason, plan.rows) == (method, "it was asked for", [])
    plan = harmony.plan(*loop)
    assert (
        plan.engine == "vmap" and "Python loop over the samples" in plan.reason and str(plan).startswith("engine vmap")
    )
    with pytest.raises(NotImplementedError, match="Python loop over the samples"):
        harmony.plan(*loop, engine=harmony.Engine(method="tape"))
    opaque = harmony.plan(*zoo.CASES["bilinear"]())
    assert opaque.engine == "tape" and "no closed form for what uses weight" in opaque.reason


def test_options_are_checked():
    with pytest.raises(ValueError, match="update must be one of"):
        harmony.plan(*zoo.mlp(), engine=harmony.Engine(update="fast"))
    with pytest.raises(ValueError, match="wrt selects none"):
        harmony.plan(*zoo.mlp(), wrt=lambda name: False)


# Check

SAMPLES = [
    "mlp", "convnet", "transformer_train", "transformer_eval", "shared_backbone", "partly_reached", "tied_weights",
    "shifted_windows", "time_batch_merged", "checkpointed", "bilinear", "batch_norm_eval", "weight_norm_conv", "gru",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")  # opaque ops; vmap on what it batches slowly
@pytest.mark.parametrize("name", SAMPLES)
def test_check_passes_on_the_zoo(name):
    case = zoo.CASES[name]()
    for options in ({}, {"update": "backward"}, {"update": "tape", "memory": 1}):
        found = harmony.check(*case, **keywords(**options))
        assert found.reference in ("vmap", "a loop over samples")
        assert max(found.gram, found.update, found.embeddings) < 1e-9
    single = pytree.tree_map(lambda x: x.float() if x.is_floating_point() else x, (case.params, case.batch))
    assert harmony.check(case.encode, case.losses, *single).gram < 1e-3


RULES = {
    "AddmmBackward0": ("mlp", r"\d\.weight|\d\.bias"),
    "ConvolutionBackward0": ("convnet", r"0\.weight|0\.bias|3\.weight|3\.bias"),
    "NativeLayerNormBackward0": ("layer_norm", "weight|bias"),
    "EmbeddingBackward0": ("embedding", "weight"),
    "MulBackward0": ("layer_scale", "scale"),
}


def doubled(rule):
    """A rule whose gradients come out twice as large."""

    def wrong(site):
        use = rule(site)
        if isinstance(use, BroadcastUse):
            return replace(use, scale=2 * use.scale)
        return replace(use, right=lambda saved, grad, part: 2 * use.right(saved, grad, part))

    return wrong


@pytest.mark.parametrize("op", RULES)
def test_check_finds_a_wrong_rule_and_names_the_parameter(op, rules):
    name, parameter = RULES[op]
    case = zoo.CASES[name]()
    harmony.check(*case, engine=harmony.Engine(update="tape"))
    rules(op, doubled(grad_rules.RULES[op]))
    for update in ("tape", "kept", "backward"):
        with pytest.raises(ValueError, match=rf"the tape differs from vmap .*parameter '({parameter})'"):
            harmony.check(*case, engine=harmony.Engine(update=update))


def test_check_finds_a_wrong_rule_of_a_parameter_with_tiny_gradients(rules):
    """A scale whose gradient is a millionth of the others': measured against the largest, it would pass."""
    params = {"w": zoo.randn(4, 3), "tiny": zoo.randn(3)}
    case = zoo.Case(lambda p, x: (x @ p["w"]) * 1e3 + 1e-6 * p["tiny"], zoo.supervised, params, zoo.randn(zoo.B, 4))
    result = harmony.check(*case)
    assert max(result.gram, result.update) < 1e-9
    rules("AddBackward0", doubled(grad_rules.RULES["AddBackward0"]))
    for update in ("tape", "kept", "backward"):
        with pytest.raises(ValueError, match="worst: parameter 'tiny'"):
            harmony.check(*case, engine=harmony.Engine(update=update))


def test_check_looks_beyond_the_first_two_samples(rules):
    """A rule that is wrong for the last sample alone."""
    case = zoo.CASES["mlp"]()
    original = grad_rules.RULES["AddmmBackward0"]

    def wrong(site):
        use = original(site)
        if isinstance(use, BroadcastUse):
            return use

        def right(saved, grad, part):
            spoiled = grad.clone()
            spoiled[-1] *= 2
            return use.right(saved, spoiled, part)

        return replace(use, right=right)

    harmony.check(*case)
    rules("AddmmBackward0", wrong)
    with pytest.raises(ValueError, match="the tape differs"):
        harmony.check(*case)


ORDERS = {"reversed": lambda h: h.flip(0), "sorted": lambda h: h[h[:, 0].argsort()], "rolled": lambda h: h.roll(1, 0)}


@pytest.mark.parametrize("how", ORDERS)
def test_check_finds_embeddings_in_another_order(how):
    case = zoo.raw(lambda x, w: ORDERS[how]((2 * x) @ w), zoo.randn(zoo.B, 4), w=zoo.randn(4, 3))
    with pytest.raises(ValueError, match="mixes the samples"):
        harmony.check(*case)


HIDDEN = {
    "mean of the hidden layer": lambda h: h - h.mean(0).detach(),
    "largest entry of the batch": lambda h: h / h.detach().abs().max(),
    "next sample": lambda h: h + h.detach().roll(1, 0),
    "rank in the batch": lambda h: h * h.detach().argsort(0),
}


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("how", HIDDEN)
def test_check_finds_mixing_that_no_gradient_shows(how, size):
    case = zoo.mixed(HIDDEN[how])
    batch = case.batch[:size]
    with pytest.raises(ValueError, match="mixes the samples"):
        harmony.check(case.encode, case.losses, case.params, batch)
    inputs = lambda p, x: zoo.over_tokens(HIDDEN[how](x) @ p["w"])  # noqa: E731  (before any parameter)
    with pytest.raises(ValueError, match="mixes the samples"):
        harmony.check(inputs, case.losses, {"w": zoo.randn(4, 3)}, batch)


@pytest.mark.parametrize("name", zoo.MIXING)
def test_check_refuses_what_the_tape_refuses(name):
    with pytest.raises(ValueError, match=r"mixes the\s+samples"):
        harmony.check(*zoo.MIXING[name]())


def test_check_of_an_encoder_that_draws_random_numbers():
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, batch_first=True).double().train()
    case = zoo.from_module(nn.Sequential(layer, zoo.Apply(zoo.over_tokens)), zoo.randn(zoo.B, 6, 8))
    for update in ("kept", "tape", "backward"):
        found = harmony.check(*case, engine=harmony.Engine(update=update))
        assert found.reference == "backward passes through the same graph"
        assert max(found.gram, found.update, found.embeddings) < 1e-9


RANDOM = {
    "dropout": (nn.Linear(4, 6), nn.Dropout(0.5)),
    "attention": (zoo.encoder_layer(dropout=0.4), zoo.Apply(lambda h: torch.cat([h, h[..., :2]], -1))),
    "recurrence": (zoo.First(nn.LSTM(4, 6, 2, batch_first=True, dropout=0.5)),),
    "plane": (nn.Linear(4, 6), nn.Dropout1d(0.5)),
}


@pytest.mark.parametrize("how", HIDDEN)
@pytest.mark.parametrize("layers", RANDOM)
def test_check_finds_mixing_in_an_encoder_that_draws_dropout(layers, how):
    """Masks differ from call to call: dropout is switched off where embeddings are compared."""
    net = nn.Sequential(*RANDOM[layers], nn.Linear(6, 3), zoo.Apply(zoo.over_tokens)).train()
    case = zoo.from_module(net.double(), zoo.randn(zoo.B, 7, 4))
    assert harmony.check(*case).embeddings < 1e-9
    net.insert(len(net) - 2, zoo.Apply(HIDDEN[how]))
    with pytest.raises(ValueError, match="mixes the samples"):
        harmony.check(*case)


def test_check_cannot_compare_the_embeddings_of_an_encoder_that_draws_noise():
    case = zoo.raw(lambda x, w: (x + torch.rand_like(x)) @ w, zoo.randn(zoo.B, 4), w=zoo.randn(4, 3))
    result = harmony.check(*case)
    assert result.embeddings is None and max(result.gram, result.update) < 1e-9


@pytest.mark.parametrize("sample", range(7))
def test_check_finds_mixing_of_any_single_sample(sample):
    """The statistics of one sample's neighbours are in its embedding alone."""

    def encode(x, w):
        h = x @ w
        h[sample : sample + 1] += 1e-3 * h[:1].detach() * (len(x) > 1)
        return h

    with pytest.raises(ValueError, match="mixes the samples"):
        harmony.check(*zoo.raw(encode, zoo.randn(7, 4), w=zoo.randn(4, 3)))


def test_check_finds_an_error_in_the_gram_of_one_sample_with_tiny_gradients(rules):
    """Measured against the largest block, the last sample's would pass."""
    case = zoo.CASES["mlp"]()
    batch = case.batch.clone()
    losses = lambda f: {k: t * torch.tensor([1, 1, 1, 1, 1e-6]).double() for k, t in zoo.supervised(f).items()}  # noqa: E731
    arguments = (case.encode, losses, case.params, batch)
    harmony.check(*arguments)
    original = grad_rules.RULES["AddmmBackward0"]

    def wrong(site):
        use = original(site)
        factor = torch.ones(len(batch), 1, dtype=torch.float64)
        factor[-1] = 2
        if isinstance(use, BroadcastUse):
            return use
        return replace(use, right=lambda saved, grad, part: use.right(saved, grad * factor, part))

    rules("AddmmBackward0", wrong)
    with pytest.raises(ValueError, match="the tape differs"):
        harmony.check(*arguments)


@pytest.mark.parametrize("group_size", [2, 3, 4, 5, 9])
def test_check_of_groups(group_size, rules):
    """A rule that is right for single samples, and wrong for groups of them."""
    case = zoo.CASES["transformer_train"]()
    result = harmony.check(*case, group_size=group_size)
    assert max(result.gram, result.update) < 1e-9
    original = grad_rules.RULES["NativeLayerNormBackward0"]

    def wrong(site):
        use = original(site)
        if use.factor is not None:
            return use
        return replace(use, total=lambda x, shape: sum_to(x[:, :1], shape))

    rules("NativeLayerNormBackward0", wrong)
    harmony.check(*case)
    with pytest.raises(ValueError, match="the tape differs"):
        harmony.check(*case, group_size=group_size)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("parameter", range(4))
def test_check_sees_a_parameter_whose_gradient_alone_is_no_number(value, parameter, monkeypatch):
    """The largest of some errors must not depend on where among them NaN stands."""
    case = zoo.CASES["mlp"]()
    names = list(case.params)
    original = PerSampleGradients.combine

    def spoiled(self, weights):
        grads = original(self, weights)
        grads[parameter] = grads[parameter] * value
        return grads

    monkeypatch.setattr(PerSampleGradients, "combine", spoiled)
    with pytest.raises(ValueError, match=f"by .* and inf in the update .*parameter '{names[parameter]}'"):
        harmony.check(*case)


def test_check_of_a_random_encoder_finds_a_wrong_rule(rules):
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    case = zoo.from_module(net, zoo.randn(zoo.B, 4))
    rules("AddmmBackward0", doubled(grad_rules.RULES["AddmmBackward0"]))
    with pytest.raises(ValueError, match=r"differs from backward passes.*parameter '\d\.(weight|bias)'"):
        harmony.check(*case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_check_under_autocast(dtype):
    case = zoo.mlp()
    params, batch = {n: p.float() for n, p in case.params.items()}, case.batch.float()
    with torch.autocast("cpu", dtype=dtype):
        assert harmony.check(case.encode, case.losses, params, batch).gram < 0.1


def test_check_of_some_parameters_one_sample_and_losses_with_parameters():
    case = zoo.shared_backbone()
    harmony.check(*case, wrt=lambda name: name.startswith("backbone"))
    mlp = zoo.mlp()
    harmony.check(mlp.encode, mlp.losses, mlp.params, mlp.batch[:1])
    scaled = lambda p, f: {k: t * p["scale"] for k, t in zoo.supervised(f).items()}  # noqa: E731
    harmony.check(mlp.encode, scaled, mlp.params, mlp.batch, loss_params={"scale": torch.tensor(2.0).double()})
    harmony.plan(mlp.encode, scaled, mlp.params, mlp.batch, loss_params={"scale": torch.tensor(2.0).double()})


def test_check_and_plan_leave_parameters_and_generator_as_they_were():
    layer = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    case = zoo.from_module(layer, zoo.randn(zoo.B, 4))
    before = {n: p.clone() for n, p in case.params.items()}
    harmony.check(*case)
    harmony.plan(*case)
    torch.testing.assert_close(case.params, before, rtol=0, atol=0)
    assert all(p.grad is None and not p.requires_grad for p in case.params.values())
