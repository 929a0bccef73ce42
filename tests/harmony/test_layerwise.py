"""A Gram for each label of parameters, and weights of their own, against brute force."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import harmony
from tests import zoo
from tests.harmony import oracle
from tests.harmony.options import keywords

TOLERANCE = 1e-10
METHODS = ("tape", "vmap", "loop")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def by_module(name):
    """Three labels; the scale has none."""
    return None if name == "scale" else name.split(".")[0] if name.startswith("tokens") else name.rpartition(".")[0]


def labelled(grads, label):
    """Gradients of a label's parameters alone."""
    return {n: g for n, g in grads.items() if by_module(n) == label}


@settings(max_examples=30)
@given(
    attribution=st.sampled_from(["activation", "loss", "anchor"]),
    group_size=st.integers(1, zoo.B + 1),
    chunk_size=st.none() | st.integers(1, zoo.B + 1),
    method=st.sampled_from(METHODS),
    update=st.sampled_from(["auto", "kept", "tape", "backward"]),
)
def test_every_label_has_the_gram_and_the_update_of_its_parameters(attribution, group_size, chunk_size, method, update):
    case = zoo.shared_backbone()
    grads = oracle.per_sample_gradients(*case, attribution=attribution)
    options = {"attribution": attribution, "group_size": group_size, "chunk_size": chunk_size, "method": method}
    if attribution == "activation":
        options["update"] = update
    result = harmony.gram_vjp(*case, labels=by_module, **keywords(**options))
    assert set(result.gram) == {"backbone.0", "backbone.1", "tokens"}
    for label, blocks in result.gram.items():
        expected = oracle.gram_blocks(labelled(grads, label), group_size)
        assert oracle.relative_error(blocks, expected) < TOLERANCE
    whole = oracle.gram_blocks({n: g for n, g in grads.items() if by_module(n)}, group_size)
    assert oracle.relative_error(sum(result.gram.values()), whole) < TOLERANCE

    weights = {label: torch.rand(blocks.shape[:2], dtype=torch.float64) for label, blocks in result.gram.items()}
    if attribution == "anchor":
        grads = oracle.per_sample_gradients(*case, attribution="loss")
    updated = result.pullback(weights)
    for name, g in grads.items():
        own = weights.get(by_module(name), sum(weights.values()) / len(weights))
        per_sample = own.repeat_interleave(group_size, 0)[: zoo.B]
        expected = torch.einsum("bk,bk...->...", per_sample, g)
        torch.testing.assert_close(updated[name], expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("group_size", [1, 3])
def test_a_step_drops_whole_samples_and_projects_label_by_label(method, chunk_size, group_size):
    case = zoo.shared_backbone()
    harmonizer = harmony.chain(
        harmony.curriculum.threshold(-0.2), harmony.layerwise(harmony.realign.pcgrad), harmony.realign.mean
    )
    step = harmony.harmonized_grad(
        case.encode,
        case.losses,
        harmonizer,
        labels=by_module,
        group_size=group_size,
        engine=harmony.Engine(method=method, chunk_size=chunk_size),
    )
    state = harmonizer.init()
    updated, state, info = step(case.params, case.batch, state)

    grads = oracle.per_sample_gradients(*case, attribution="activation")
    grams = {label: oracle.gram_blocks(labelled(grads, label), group_size) for label in info.gram_of}
    whole = sum(grams.values())
    keep = (harmony.agreement(whole) > -0.2).double()[:, None]
    assert 0 < keep.sum() < len(keep) or group_size > 1  # the seed shows both
    weights = {label: keep * harmony.realign.pcgrad(gram) / 2 for label, gram in grams.items()}
    torch.testing.assert_close(info.gram, whole)
    torch.testing.assert_close(info.agreement, harmony.agreement(whole))
    torch.testing.assert_close(info.gram_of, grams)
    torch.testing.assert_close(info.weights_of, weights)
    torch.testing.assert_close(info.weights, sum(weights.values()) / 3)
    assert int(info.kept) == int(keep.sum())
    for name, g in grads.items():
        own = weights.get(by_module(name), info.weights)
        expected = torch.einsum("bk,bk...->...", own.repeat_interleave(group_size, 0)[: zoo.B], g)
        torch.testing.assert_close(updated[name], expected, rtol=TOLERANCE, atol=TOLERANCE)
    _, state, _ = step(case.params, case.batch, state)
    assert int(state[0].step) == 2


def test_a_label_for_every_layer_costs_no_exactness_on_any_architecture():
    for name in ("tied_weights", "convnet", "transformer_eval", "raw_parameters"):
        case = zoo.CASES[name]()
        grads = oracle.per_sample_gradients(*case, attribution="activation")
        result = harmony.gram_vjp(*case, labels=lambda n: n)
        weights = {label: torch.rand(blocks.shape[:2], dtype=torch.float64) for label, blocks in result.gram.items()}
        updated = result.pullback(weights)
        for n, g in grads.items():
            torch.testing.assert_close(result.gram[n], oracle.gram_blocks({n: g}), rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(updated[n], torch.einsum("bk,bk...->...", weights[n], g), rtol=1e-9, atol=1e-12)


def test_labels_and_yes_or_no_are_not_mixed_and_need_parameters():
    case = zoo.shared_backbone()
    with pytest.raises(TypeError, match="a string, or None for no Gram, for every parameter"):
        harmony.gram_vjp(*case, labels=lambda name: "scale" if name == "scale" else True)
    with pytest.raises(TypeError, match=r"got a string\. Labels of Grams go into labels="):
        harmony.gram_vjp(*case, wrt=by_module)
    with pytest.raises(ValueError, match="wrt and labels choose parameters"):
        harmony.gram_vjp(*case, labels=by_module, space="features")
    with pytest.raises(ValueError, match='feature_leaves needs space="features"'):
        harmony.gram_vjp(*case, feature_leaves=lambda name: True)
    with pytest.raises(ValueError, match="wrt selects none of the parameters"):
        harmony.gram_vjp(*case, wrt=lambda name: None)
    with pytest.raises(ValueError, match="labels gives a label to none of the parameters"):
        harmony.gram_vjp(*case, labels=lambda name: None)
    result = harmony.gram_vjp(*case, labels=by_module)
    with pytest.raises(ValueError, match=r"weights are of the labels \['tokens'\]"):
        result.pullback({"tokens": torch.ones(zoo.B, 2)})
    with pytest.raises(ValueError, match=r"weights of shape \(5, 2\)"):
        result.pullback(torch.ones(zoo.B, 3))


def test_layerwise_says_what_it_needs():
    layerwise = harmony.layerwise(harmony.realign.pcgrad)
    with pytest.raises(TypeError, match="call the step with labels="):
        layerwise.update(torch.eye(2)[None], layerwise.init())
    with pytest.raises(TypeError, match="layerwise already"):
        harmony.layerwise(harmony.chain(layerwise))
    with pytest.raises(TypeError, match="weigh whole samples"):
        harmony.curriculum.renormalized(layerwise)


def test_every_label_has_a_state_of_its_own():
    grams = {"a": torch.eye(2)[None], "b": torch.tensor([[[1.0, 0.6], [0.6, 1.0]]])}
    layerwise, alone = harmony.layerwise(harmony.realign.gradvac(decay=0.5)), harmony.realign.gradvac(decay=0.5)
    state, states = layerwise.init(), dict.fromkeys(grams, alone.init())
    for _ in range(3):
        weights, state = layerwise.update(grams, state)
        for label, gram in grams.items():
            expected, states[label] = alone.update(gram, states[label])
            assert torch.equal(weights[label], expected)
            torch.testing.assert_close(state[label], states[label])


def test_chain_obeys_its_laws_on_labels():
    generator = torch.Generator().manual_seed(0)
    grams = {}
    for label in ("a", "b"):
        g = torch.randn(6, 2, 3, generator=generator, dtype=torch.float64)
        grams[label] = g @ g.mT
    a, b = harmony.layerwise(harmony.realign.pcgrad), harmony.curriculum.threshold(0.0)
    c = harmony.layerwise(harmony.realign.mgda)

    def run(transform):
        return transform.update(grams, transform.init())[0]

    torch.testing.assert_close(run(harmony.chain(harmony.chain(a, b), c)), run(harmony.chain(a, harmony.chain(b, c))))
    torch.testing.assert_close(run(harmony.chain(a, harmony.chain())), run(a))
    assert torch.equal(run(harmony.chain(b)), b.update(sum(grams.values()), b.init())[0])


def test_check_and_plan_take_labels():
    case = zoo.shared_backbone()
    assert harmony.check(*case, labels=by_module).gram < 1e-9
    assert {row.name for row in harmony.plan(*case, labels=by_module).rows} == set(case.params)


def test_extras_of_the_embeddings_reach_the_harmonizer_in_parts():
    case = zoo.shared_backbone()

    def similar(f):
        assert not torch.is_grad_enabled()
        return {"similarity": torch.cosine_similarity(f["video"], f["text"])}

    f = case.encode(case.params, case.batch)
    values = torch.cosine_similarity(f["video"], f["text"])
    harmonizer = harmony.curriculum.threshold(float(values.median()) + 1e-6, score=harmony.score.similarity)
    assert harmonizer.samplewise
    expected = (values > values.median() + 1e-6).double()
    assert 0 < expected.sum() < zoo.B
    for options in ({}, {"chunk_size": 2}, {"attribution": "anchor"}):
        step = harmony.harmonized_grad(case.encode, case.losses, harmonizer, extras=similar, **keywords(**options))
        _, _, info = step(case.params, case.batch, harmonizer.init())
        torch.testing.assert_close(info.weights[:, 0], expected)


def test_extras_that_do_not_fit_are_refused():
    case = zoo.shared_backbone()

    def step(extras=None, ids=None):
        return harmony.harmonized_grad(case.encode, case.losses, harmony.chain(), extras=extras)(
            case.params, case.batch, (), ids=ids
        )

    with pytest.raises(ValueError, match="must not be called 'terms'"):
        step(lambda f: {"terms": torch.zeros(zoo.B, 2)})
    with pytest.raises(ValueError, match=r"one row for each of 5 samples; got \(3,\)"):
        step(lambda f: {"similarity": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"one row for each of 5 samples; got 0\.5"):
        step(lambda f: {"similarity": 0.5})
    with pytest.raises(ValueError, match=r"ids must be of shape \(5,\), one for each sample; got \(4,\)"):
        step(ids=torch.arange(4))
