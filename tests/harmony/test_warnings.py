"""Warnings point at the line of the user, whichever function of the library was called there."""

import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call

import harmony
from harmony import parameters
from tests import zoo


@pytest.fixture(autouse=True)
def seeded(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(parameters, "_COMPARED", set())


class Encoder(nn.Module):
    """Two linear layers; subclasses say what is done with them."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return {"a": self.first(x), "b": self.first(x) + self.second(x)}


class Looped(Encoder):
    """The tape leaves a loop over the samples to ``vmap``."""

    def forward(self, x):
        h = torch.stack([self.first(row) for row in x])
        return {"a": h, "b": h}


class Branching(Encoder):
    """``vmap`` cannot branch on data: a Python loop is left."""

    def forward(self, x):
        h = torch.stack([self.first(row if float(row[0]) > 0 else -row) for row in x])
        return {"a": h, "b": h}


class Apart(Encoder):
    """The losses share no parameter."""

    def forward(self, x):
        return {"a": self.first(x), "b": self.second(x)}


class Opaque(Encoder):
    """An op without a closed form."""

    def forward(self, x):
        return super().forward(x) | {"b": torch.maximum(self.first(x), self.second.bias)}


def losses(f):
    return {"a": f["a"].sin().sum(1), "b": f["b"].cos().sum(1)}


class Call:
    """One encoder as a module, as functions, and as a step that was made on another line than it is called on."""

    def __init__(self, module):
        self.module, self.x = module, zoo.randn(5, 4)
        self.params = {name: p.detach() for name, p in module.named_parameters()}
        self.encode = lambda p, x: functional_call(module, p, (x,))
        self.step = harmony.harmonized_grad(self.encode, losses, harmony.chain())


CALLS = {
    "gram_vjp": lambda c: harmony.gram_vjp(c.encode, losses, c.params, c.x),
    "step": lambda c: c.step(c.params, c.x, ()),
    "backward": lambda c: harmony.backward(c.module, c.x, losses, harmony.chain()),
    "measure": lambda c: harmony.measure(c.module, c.x, losses),
    "plan": lambda c: harmony.plan(c.encode, losses, c.params, c.x),
    "plan of a module": lambda c: harmony.plan(c.module, c.x, losses),
    "check": lambda c: harmony.check(c.encode, losses, c.params, c.x),
    "check of a module": lambda c: harmony.check(c.module, c.x, losses),
}
GRADIENTS = ["gram_vjp", "step", "backward", "measure"]
MODULES = ["backward", "measure", "plan of a module", "check of a module"]


def assert_points_at_the_caller(name, module, message):
    """One warning says it, and its file and line are those of the lambda that called the library."""
    call, argument = CALLS[name], Call(module)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(argument)
    places = [(w.filename, w.lineno) for w in caught if message in str(w.message)]
    assert places and set(places) == {(__file__, call.__code__.co_firstlineno)}


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_fallback_to_vmap(name):
    assert_points_at_the_caller(name, Looped().double(), "torch.func.vmap is used")


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_fallback_to_a_loop(name):
    assert_points_at_the_caller(name, Branching().double(), "in a Python loop over samples")


@pytest.mark.parametrize("name", CALLS)
def test_losses_that_share_no_parameter(name):
    assert_points_at_the_caller(name, Apart().double(), "No parameter of the Gram is reached by both losses")


def test_losses_that_share_no_parameter_are_told_of_once_for_each_line():
    argument = Call(Apart().double())
    for name in ("gram_vjp", "step", "measure"):
        with pytest.warns(UserWarning, match="No parameter of the Gram"):
            CALLS[name](argument)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            CALLS[name](argument)


@pytest.mark.parametrize("name", GRADIENTS)
def test_an_op_without_a_closed_form(name):
    assert_points_at_the_caller(name, Opaque().double(), "has no closed form")


@pytest.mark.parametrize("name", MODULES)
def test_a_compiled_module(name):
    assert_points_at_the_caller(name, torch.compile(Encoder().double()), "The module is compiled")
