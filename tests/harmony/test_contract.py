"""One result with names, and one object with the options of the machine; both cannot be changed."""

import dataclasses
import functools

import pytest
import torch
from torch import nn

import harmony
from tests import zoo


def test_a_result_has_names_and_is_frozen():
    result = harmony.gram_vjp(*zoo.mlp())
    names = [field.name for field in dataclasses.fields(result)]
    assert names == ["values", "terms", "gram", "embeddings", "pullback", "products"]
    assert isinstance(result, harmony.GramVJP) and result.products is None
    assert not any(x.requires_grad for x in (result.terms, result.gram, result.embeddings, *result.values.values()))
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.gram = torch.zeros(1)


def test_a_result_cannot_be_unpacked():
    result = harmony.gram_vjp(*zoo.mlp())
    with pytest.raises(TypeError, match="cannot unpack non-iterable GramVJP"):
        _, _, _ = result
    with pytest.raises(TypeError, match="not subscriptable"):
        result[1]


def test_an_engine_is_a_frozen_value():
    engine = harmony.Engine(method="tape", chunk_size=4)
    assert engine == harmony.Engine("tape", chunk_size=4) != harmony.Engine()
    assert len({engine, harmony.Engine(method="tape", chunk_size=4), harmony.Engine()}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        engine.method = "vmap"
    with pytest.raises(TypeError, match="unexpected keyword argument 'chunk_sise'"):
        harmony.Engine(chunk_sise=2)


CHOICES = {
    "method": "'auto', 'tape', 'vmap', 'loop'",
    "update": "'auto', 'kept', 'tape', 'backward'",
    "verify": "'auto', 'always', 'never'",
}


@pytest.mark.parametrize("name", CHOICES)
def test_an_engine_refuses_unknown_choices(name):
    for value in ("fast", None):
        with pytest.raises(ValueError, match=f"{name} must be one of {CHOICES[name]}; got {value!r}"):
            harmony.Engine(**{name: value})


@pytest.mark.parametrize("size", [0, -1])
@pytest.mark.parametrize("name", ["memory", "chunk_size"])
def test_an_engine_refuses_sizes_below_one(name, size):
    with pytest.raises(ValueError, match=f"{name} must be at least 1; got {size}"):
        harmony.Engine(**{name: size})
    assert getattr(harmony.Engine(**{name: 1}), name) == 1


MODULE, X = nn.Linear(4, 3).double(), zoo.randn(5, 4)
CALLS = {
    "gram_vjp": lambda **options: harmony.gram_vjp(*zoo.mlp(), **options),
    "harmonized_grad": lambda **options: harmony.harmonized_grad(*zoo.mlp()[:2], harmony.chain(), **options),
    "backward": lambda **options: harmony.backward(MODULE, X, zoo.supervised, harmony.chain(), **options),
    "measure": lambda **options: harmony.measure(MODULE, X, zoo.supervised, **options),
}


@pytest.mark.parametrize("name", CALLS)
def test_wrong_options_are_refused_before_anything_runs(name):
    call = CALLS[name]
    with pytest.raises(TypeError, match=r"engine must be a harmony\.Engine.*got \'vmap\'"):
        call(engine="vmap")
    with pytest.raises(ValueError, match="attribution must be one of 'activation', 'loss', 'anchor'; got 'sample'"):
        call(attribution="sample")
    with pytest.raises(ValueError, match="space must be one of 'parameters', 'features'; got 'embeddings'"):
        call(space="embeddings")
    with pytest.raises(ValueError, match="group_size must be at least 1; got 0"):
        call(group_size=0)
    for old in ("method", "update", "memory", "chunk_size", "verify", "has_aux", "toward_batch"):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{old}'"):
            call(**{old: 1})


@pytest.mark.parametrize(
    "step", [harmony.measure, functools.partial(harmony.backward, harmonizer=harmony.realign.pcgrad)]
)
def test_what_is_no_module_is_refused(step):
    with pytest.raises(TypeError, match=r"expected a module.*got function.*gram_vjp or harmonized_grad"):
        step(lambda x: x, torch.ones(2, 1), lambda f: {"loss": f[:, 0]})
