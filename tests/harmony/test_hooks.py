"""Hooks on tensors of the encoder change gradients, also where the gradients of samples are read."""

import warnings

import pytest
import torch

import harmony
from harmony.engines.errors import HookedTensorError, LeakedGradientError
from tests import zoo

HOOKS = {
    "doubles": lambda grad: 2 * grad,
    "masks": lambda grad: grad * (grad > 0),
    "looks": lambda grad: None,
}
PLACES = ("input of an op", "output of an op", "output of the encoder")


def case_of(hook, place):
    """Two layers; the output of each uses a parameter, and the first lies behind the second."""

    def hooked(x, name):
        if place == name and x.requires_grad:
            x.register_hook(hook)
        return x

    def encode(p, x):
        h = hooked((x @ p["w"]), "output of an op")
        z = hooked(h.tanh(), "input of an op") @ p["v"]
        return hooked(z, "output of the encoder")

    return zoo.Case(encode, zoo.supervised, {"w": zoo.randn(4, 3), "v": zoo.randn(3, 2)}, zoo.randn(6, 4))


def by_hand(case):
    """Gram blocks by a backward pass for each sample and loss; every sample is encoded alone."""
    blocks = []
    params = {name: p.detach().requires_grad_() for name, p in case.params.items()}
    whole = case.encode(params, case.batch)
    for b in range(len(case.batch)):
        own = case.encode(params, case.batch[b : b + 1])
        rows = []
        for name in case.losses(whole):
            leaf = whole.detach().requires_grad_()
            (cotangent,) = torch.autograd.grad(case.losses(leaf)[name].mean(), leaf)
            grads = torch.autograd.grad(own, list(params.values()), cotangent[b : b + 1], retain_graph=True)
            rows.append(torch.cat([grad.flatten() for grad in grads]))
        blocks.append(torch.stack(rows) @ torch.stack(rows).T)
    return torch.stack(blocks)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_on_a_tensor_changes_the_gradients_of_samples(name, place):
    case = case_of(HOOKS[name], place)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gram = harmony.gram_vjp(*case).gram
    torch.testing.assert_close(gram, by_hand(case))
    with pytest.raises(HookedTensorError, match="registers a hook on a tensor"):
        harmony.gram_vjp(*case, engine=harmony.Engine(method="tape"))


def test_where_torch_func_would_not_call_a_hook_a_loop_does():
    case = case_of(HOOKS["doubles"], "output of an op")

    def encode(p, x):
        h = x @ p["w"]
        h.register_hook(HOOKS["doubles"])
        return h.tanh() @ p["v"]

    case = case._replace(encode=encode)
    with pytest.warns(UserWarning, match="torch.func calls no hook of a tensor"):
        gram = harmony.gram_vjp(*case, engine=harmony.Engine(method="vmap")).gram
    torch.testing.assert_close(gram, by_hand(case))
    assert torch.is_grad_enabled()


def test_a_hook_between_a_view_of_a_parameter_and_the_parameter_is_found():
    """A hook on an operation, which no call of a tensor announces."""
    module = torch.nn.ParameterList([torch.nn.Parameter(torch.randn(4, 4))])

    def forward(module, x):
        view = module[0].mT.contiguous().clone()
        view.grad_fn.register_hook(lambda inputs, outputs: (2 * inputs[0],))
        return x @ view

    with pytest.raises(LeakedGradientError, match="a hook changes the gradient on the way"):
        harmony.backward(
            module,
            torch.randn(5, 4),
            lambda f: {"a": f[:, 0] ** 2, "b": f.sum(1)},
            harmony.chain(),
            forward=forward,
            engine=harmony.Engine(verify="always"),
        )
