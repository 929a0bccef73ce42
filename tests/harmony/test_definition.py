"""The definition against brute force, and every engine against the definition."""

import ast
import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import harmony
from harmony import definition
from tests import zoo
from tests.harmony import oracle
from tests.harmony.test_tape import encoders

ATTRIBUTIONS = ("activation", "loss", "anchor")
METHODS = ("tape", "vmap", "loop")
TOLERANCE = 1e-10
CASES = [
    *("mlp", "convnet", "transformer_train", "shared_backbone", "partly_reached", "single_loss", "never_used"),
    *("only_detached", "tied_weights", "raw_parameters", "hypernetwork", "mixture_of_experts", "in_place"),
]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@settings(max_examples=60)
@given(case=encoders(), attribution=st.sampled_from(ATTRIBUTIONS), group_size=st.integers(1, 7))
def test_the_definition_is_brute_force(case, attribution, group_size):
    result = definition.gram_vjp(*case, attribution=attribution, group_size=group_size)
    grads = oracle.per_sample_gradients(*case, attribution=attribution)
    assert oracle.relative_error(result.gram, oracle.gram_blocks(grads, group_size)) < TOLERANCE

    embeddings = case.encode(case.params, case.batch)
    terms = case.losses(embeddings)
    torch.testing.assert_close(result.embeddings, embeddings)
    torch.testing.assert_close(result.terms, torch.stack(list(terms.values()), 1))
    torch.testing.assert_close(result.values, {name: term.mean() for name, term in terms.items()})

    weights = torch.rand(result.gram.shape[:2], dtype=torch.float64)
    rows = weights.repeat_interleave(group_size, 0)[: len(result.terms)]
    if attribution == "anchor":  # the weights multiply the loss terms: the update is loss-wise
        grads = oracle.per_sample_gradients(*case, attribution="loss")
    expected = {name: torch.einsum("bk,bk...->...", rows, g) for name, g in grads.items()}
    assert oracle.error_per_parameter(result.pullback(weights), expected) < TOLERANCE


def assert_defined(result, expected):
    """A result of the library is that of the definition."""
    torch.testing.assert_close(result.values, expected.values, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(result.terms, expected.terms, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(result.embeddings, expected.embeddings, rtol=TOLERANCE, atol=TOLERANCE)
    assert oracle.relative_error(result.gram, expected.gram) < TOLERANCE
    weights = torch.rand(expected.gram.shape[:2], dtype=torch.float64)
    assert oracle.error_per_parameter(result.pullback(weights), expected.pullback(weights)) < TOLERANCE


@pytest.mark.parametrize("attribution", ATTRIBUTIONS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CASES)
def test_every_engine_agrees_with_the_definition(name, method, attribution):
    case = zoo.CASES[name]()
    for group_size in (1, 2):
        options = {"attribution": attribution, "group_size": group_size}
        result = harmony.gram_vjp(*case, **options, engine=harmony.Engine(method=method))
        assert_defined(result, definition.gram_vjp(*case, **options))


ENGINES = st.builds(
    harmony.Engine,
    method=st.sampled_from(METHODS),
    update=st.sampled_from(["auto", "kept", "tape", "backward"]),
    memory=st.sampled_from([1, 4096, 2**28]),
    chunk_size=st.none() | st.integers(1, 4),
    verify=st.sampled_from(["auto", "always", "never"]),
)


@settings(max_examples=100)
@given(case=encoders(), attribution=st.sampled_from(ATTRIBUTIONS), group_size=st.integers(1, 7), engine=ENGINES)
def test_every_engine_agrees_with_the_definition_on_random_encoders(case, attribution, group_size, engine):
    options = {"attribution": attribution, "group_size": group_size}
    expected = definition.gram_vjp(*case, **options)
    assert_defined(harmony.gram_vjp(*case, **options, engine=engine), expected)
    by_name = harmony.gram_vjp(*case, **options, labels=lambda name: name, engine=engine)
    assert oracle.relative_error(sum(by_name.gram.values()), expected.gram) < TOLERANCE
    for curriculum in (harmony.curriculum.agreement_weight(), harmony.curriculum.quantile(0.5)):
        step = harmony.harmonized_grad(case.encode, case.losses, harmony.chain(curriculum), **options, engine=engine)
        grads, _, info = step(case.params, case.batch, (curriculum.init(),))
        assert oracle.relative_error(info.gram, expected.gram) < TOLERANCE
        torch.testing.assert_close(grads, expected.pullback(info.weights), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("method", METHODS)
def test_a_scalar_loss_is_a_term_of_every_sample(method):
    case = zoo.mlp()._replace(losses=lambda f: {"scalar": f.pow(2).mean(), "terms": f.sum(1).sin()})
    assert_defined(harmony.gram_vjp(*case, engine=harmony.Engine(method=method)), definition.gram_vjp(*case))


def test_the_definition_is_short_and_stands_on_torch_alone():
    source = inspect.getsource(definition)
    nodes = list(ast.walk(ast.parse(source)))
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [f"{'.' * node.level}{node.module or ''}" for node in nodes if isinstance(node, ast.ImportFrom)]
    assert {module.partition(".")[0] for module in modules} == {"collections", "typing", "torch"}
    assert len(source.splitlines()) < 300
