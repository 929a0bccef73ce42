"""``plan`` and ``check`` of a module are those of the functions that it stands for."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

import harmony
from harmony.engines.tape import grad_rules
from tests import zoo
from tests.harmony.options import keywords
from tests.harmony.test_diagnostics import doubled


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, f):
        return {"left": self.left(f["h"]).sin().sum(1), "right": self.right(f["h"] + f["x"]).cos().sum(1)}


def forward(module, x):
    return {"h": module(x), "x": x[:, :3]}


def modules(frozen=False):
    module = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)).double()
    module[0].requires_grad_(not frozen)
    return module, Heads().double(), zoo.randn(5, 4)


def as_functions(module, heads, x):
    """The same as functions: positional arguments, and the parameters of the losses."""
    params, loss_params = ({n: p.detach() for n, p in m.named_parameters() if p.requires_grad} for m in (module, heads))
    encode = lambda p, x: forward(lambda x: functional_call(module, p, (x,)), x)  # noqa: E731
    return (encode, lambda p, f: functional_call(heads, p, (f,)), params, x), loss_params


OPTIONS = {
    "plain": {},
    "little memory": {"memory": 1},
    "backward": {"update": "backward"},
    "chunks": {"chunk_size": 2},
    "groups": {"group_size": 2},
    "shared": {"wrt": "shared"},
    "some": {"wrt": lambda name: name.startswith("3")},
    "labels": {"labels": lambda name: name.partition(".")[0]},
}
ENGINES = {"vmap": {"method": "vmap"}, "loop": {"method": "loop"}}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", OPTIONS | ENGINES)
def test_the_plan_of_a_module_is_that_of_its_functions(name, frozen):
    options = (OPTIONS | ENGINES)[name]
    module, heads, x = modules(frozen)
    functions, loss_params = as_functions(module, heads, x)
    plan = harmony.plan(module, x, heads, forward=forward, **keywords(**options))
    assert plan == harmony.plan(*functions, loss_params=loss_params, **keywords(**options))
    assert [row.name for row in plan.rows] == ([] if name in ENGINES else list(functions[2]))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_the_check_of_a_module_is_that_of_its_functions(name, frozen):
    options = OPTIONS[name]
    module, heads, x = modules(frozen)
    functions, loss_params = as_functions(module, heads, x)
    result = harmony.check(module, x, heads, forward=forward, **keywords(**options))
    expected = harmony.check(*functions, loss_params=loss_params, **keywords(**options))
    assert result.reference == expected.reference == "vmap"
    for deviations in (result, expected):
        assert max(deviations.gram, deviations.update, deviations.embeddings) < 1e-9


def test_losses_may_be_a_function_and_the_batch_is_unpacked():
    module, _, x = modules()
    assert harmony.plan(module, (x,), zoo.supervised) == harmony.plan(module, {"input": x}, zoo.supervised)
    assert harmony.check(module, (x,), zoo.supervised).gram < 1e-9


def test_check_of_a_module_finds_a_wrong_rule_and_mixed_samples(rules):
    module, heads, x = modules()
    mixing = nn.Sequential(nn.Linear(4, 3), zoo.Apply(lambda h: h - h.mean(0).detach())).double()
    with pytest.raises(ValueError, match="mixes the samples"):
        harmony.check(mixing, x, heads, forward=forward)
    rules("AddmmBackward0", doubled(grad_rules.RULES["AddmmBackward0"]))
    with pytest.raises(ValueError, match=r"the tape differs from vmap .*parameter '\d\.(weight|bias)'"):
        harmony.check(module, x, heads, forward=forward)


@pytest.mark.parametrize("update", ["kept", "tape", "backward"])
@pytest.mark.parametrize("call", [harmony.plan, harmony.check])
def test_gradients_and_hooks_are_left_alone(call, update):
    module, heads, x = modules()
    parameters, calls = [*module.parameters(), *heads.parameters()], []
    for p in parameters:
        p.register_hook(lambda grad: (calls.append(grad.shape), grad / 2)[1])
    call(module, x, heads, forward=forward, engine=harmony.Engine(update=update))
    assert not calls and all(p.grad is None for p in parameters)
    sum(term.mean() for term in heads(forward(module, x)).values()).backward()
    assert len(calls) == len(parameters)  # the hooks are back


def test_a_module_without_trainable_parameters_is_refused():
    module, heads, x = modules()
    for call in (harmony.plan, harmony.check):
        with pytest.raises(ValueError, match="no parameter that requires a gradient"):
            call(module.requires_grad_(False), x, heads, forward=forward)


@pytest.mark.parametrize("call", [harmony.plan, harmony.check])
def test_arguments_that_are_neither_functions_nor_a_module_are_refused(call):
    module, heads, x = modules()
    functions, loss_params = as_functions(module, heads, x)
    for arguments, kinds in (((), "none"), ((module, x), "Sequential, Tensor"), (functions[:2], "function, function")):
        with pytest.raises(TypeError, match=f"or module, batch, losses; got {kinds}"):
            call(*arguments)
    with pytest.raises(TypeError, match="loss_params is for functions"):
        call(module, x, heads, forward=forward, loss_params=loss_params)
    with pytest.raises(TypeError, match="forward is for a module"):
        call(*functions, forward=forward, loss_params=loss_params)
