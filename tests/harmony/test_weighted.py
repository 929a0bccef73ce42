"""Weights that come with the data, against explicit gradients that are multiplied by them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import harmony
from harmony import curriculum, realign
from tests import zoo
from tests.harmony import oracle
from tests.harmony.options import keywords
from tests.harmony.realign.gradients import STATELESS, TRANSFORMS, combine, draw, gram, seeds

MEMBERS = STATELESS | TRANSFORMS | {
    "threshold": curriculum.threshold(0.0),
    "quantile": curriculum.quantile(0.5),
    "renormalized": curriculum.renormalized(curriculum.threshold(0.0)),
    "chain": harmony.chain(curriculum.threshold(-0.2), realign.pcgrad),
}  # fmt: skip


def trust(seed, size, k):
    """Weights (B, K) in [0, 2], a third of them zero."""
    generator = torch.Generator().manual_seed(seed)
    weights = 2 * torch.rand(size, k, generator=generator, dtype=torch.float64)
    return torch.where(torch.rand(size, k, generator=generator) < 1 / 3, 0, weights)


def updated(transform, blocks, **extras):
    return transform.update(blocks, transform.init(), **extras)[0]


@pytest.mark.parametrize("name", MEMBERS)
@settings(max_examples=20)
@given(seed=seeds, k=st.integers(1, 4))
def test_a_member_makes_of_the_gradients_what_it_makes_of_the_weighted_ones(name, seed, k):
    g = draw(seed, k)
    weights = trust(seed, len(g), k)
    weighted_gradients = weights[..., None] * g
    expected = combine(updated(harmony.chain(MEMBERS[name]), gram(weighted_gradients)), weighted_gradients)
    got = combine(updated(curriculum.weighted(MEMBERS[name]), gram(g), weights=weights), g)
    assert (got - expected).abs().max() <= 1e-9 * expected.abs().max() + 1e-30


@pytest.mark.parametrize("name", MEMBERS)
@given(seed=seeds, k=st.integers(2, 4), scale=st.floats(-1e3, 1e3))
def test_a_pair_of_weight_zero_takes_no_part(name, seed, k, scale):
    g = draw(seed, k)
    weights = trust(seed, len(g), k)
    other = torch.where(weights[..., None] == 0, scale * g.flip(-1), g)
    rule = curriculum.weighted(MEMBERS[name])
    got, same = (updated(rule, gram(x), weights=weights) for x in (g, other))
    assert (got[weights == 0] == 0).all()
    assert torch.equal(got, same)


@given(seed=seeds)
def test_equal_weights_leave_a_chain_as_it_is_and_no_member_gives_the_weights(seed):
    blocks, members = gram(draw(seed, 3)), (curriculum.threshold(-0.5), realign.pcgrad)
    ones = torch.ones(blocks.shape[:2])
    assert torch.equal(
        updated(curriculum.weighted(*members), blocks, weights=ones), updated(harmony.chain(*members), blocks)
    )
    weights = trust(seed, len(blocks), 3)
    assert torch.equal(updated(curriculum.weighted(), blocks, weights=weights), weights)
    outer = harmony.chain(curriculum.weighted(), realign.normalized)  # which sees the gradients as they are
    assert torch.equal(updated(outer, blocks, weights=weights), weights * realign.normalized(blocks))


def test_a_conflict_with_a_distrusted_pair_drops_no_sample():
    blocks = torch.tensor([[[1.0, -0.9], [-0.9, 1.0]]]).expand(2, 2, 2)
    weights = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    rule = curriculum.threshold(0.0)
    assert updated(curriculum.weighted(rule), blocks, weights=weights).tolist() == [[1, 0], [0, 0]]
    assert updated(harmony.chain(curriculum.weighted(), rule), blocks, weights=weights).tolist() == [[0, 0], [0, 0]]


# ------------------------------------------------------------------------------------------------------ in a whole step
def with_weights(case, weights):
    """The case with its embeddings in a dictionary, beside them the weights, which come with the batch."""

    def encode(params, batch):
        return {"f": case.encode(params, batch["data"]), "weights": batch["weights"]}

    batch = {"data": case.batch, "weights": weights}
    return zoo.Case(encode, lambda f: case.losses(f["f"]), case.params, batch)


@settings(max_examples=25)
@given(
    seed=seeds,
    method=st.sampled_from(["tape", "vmap", "loop"]),
    chunk_size=st.none() | st.integers(1, zoo.B),
    attribution=st.sampled_from(["activation", "anchor", "loss"]),
    labels=st.booleans(),
)
def test_the_update_is_that_of_weighted_gradients(seed, method, chunk_size, attribution, labels):
    torch.manual_seed(0)
    plain = zoo.shared_backbone()
    weights = trust(seed, zoo.B, 2)
    case = with_weights(plain, weights)
    members = [harmony.layerwise(realign.pcgrad)] if labels else [curriculum.threshold(-0.1), realign.pcgrad]
    step = harmony.harmonized_grad(
        case.encode,
        case.losses,
        curriculum.weighted(*members),
        extras=lambda f: {"weights": f["weights"]},
        labels=(lambda name: name.split(".")[0]) if labels else None,
        attribution=attribution,
        **keywords(method=method, chunk_size=chunk_size),
    )
    state = curriculum.weighted(*members).init()
    update, _, info = step(case.params, case.batch, state)

    seen = oracle.per_sample_gradients(*plain, attribution=attribution)
    pulled = oracle.per_sample_gradients(*plain, attribution="loss") if attribution == "anchor" else seen
    for names in parts(plain.params, labels):
        scaled = {n: weights.view(zoo.B, 2, *[1] * (seen[n].ndim - 2)) * seen[n] for n in names}
        factors = updated(harmony.chain(*([realign.pcgrad] if labels else members)), oracle.gram_blocks(scaled))
        for n in names:
            expected = torch.einsum("bk,bk...->...", weights * factors, pulled[n])
            assert (update[n] - expected).abs().max() <= 1e-10 * max(pulled[n].abs().max(), 1e-12)
    assert int(info.kept) <= int((weights > 0).any(1).sum())


def parts(params, labels):
    """The names of the parameters, in the parts of which each has a Gram."""
    if not labels:
        return [list(params)]
    labels = dict.fromkeys(name.split(".")[0] for name in params)
    return [[name for name in params if name.split(".")[0] == label] for label in labels]


def test_a_module_takes_them_from_the_batch():
    torch.manual_seed(0)
    model, x = torch.nn.Linear(3, 2, bias=False), torch.randn(4, 3)
    weights = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.5, 2.0], [0.0, 0.0]])
    info, _ = harmony.backward(
        model,
        {"x": x, "weights": weights},
        lambda f: {"left": f["y"][:, 0], "right": f["y"][:, 1]},
        curriculum.weighted(),
        forward=lambda model, batch: {"y": model(batch["x"]), "weights": batch["weights"]},
        extras=lambda f: {"weights": f["weights"]},
    )
    torch.testing.assert_close(model.weight.grad, weights.T @ x / 4)
    assert torch.equal(info.weights, weights) and int(info.kept) == 3


# ------------------------------------------------------------------------------------------------------- what is wrong
@pytest.mark.parametrize("value", [math.nan, math.inf, -0.25])
def test_weights_that_are_none_are_an_error_that_names_the_sample(value):
    weights = torch.ones(3, 2)
    weights[1, 0] = value
    message = rf"finite and at least 0; got {value:g} for sample 1, loss 0"
    with pytest.raises(ValueError, match=message):
        updated(curriculum.weighted(), torch.eye(2).expand(3, 2, 2), weights=weights)


def test_where_nothing_can_be_asked_they_are_no_number():
    update = torch.compile(curriculum.weighted(realign.summed).update, fullgraph=True, backend="aot_eager")
    weights = torch.tensor([[1.0, -1.0], [0.5, 0.0]])
    got, _ = update(torch.eye(2).expand(2, 2, 2), curriculum.weighted(realign.summed).init(), weights=weights)
    assert got.isnan().tolist() == [[False, True], [False, False]] and got[1].tolist() == [0.5, 0.0]


def test_a_step_without_weights_says_where_they_come_from():
    blocks = torch.eye(2).expand(3, 2, 2)
    with pytest.raises(ValueError, match=r"weighted needs weights \(3, 2\): call the step with extras=lambda"):
        updated(curriculum.weighted(), blocks)
    with pytest.raises(ValueError, match=r"weights of shape \(3, 2\), one for each Gram block; got \(3,\)"):
        updated(curriculum.weighted(), blocks, weights=torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int64, torch.bool])
def test_weights_of_any_type_leave_the_type_of_the_blocks(dtype):
    got = updated(curriculum.weighted(realign.pcgrad), torch.eye(2)[None], weights=torch.ones(1, 2, dtype=dtype))
    assert got.dtype == torch.float32 and got.tolist() == [[1.0, 1.0]]


def test_what_is_samplewise_and_layerwise_stays_so():
    assert curriculum.weighted(curriculum.threshold(), realign.pcgrad).samplewise
    assert not curriculum.weighted(curriculum.quantile(0.5)).samplewise
    assert curriculum.weighted(harmony.layerwise(realign.pcgrad)).layerwise
    with pytest.raises(TypeError, match=r"threshold makes a transform: call it"):
        curriculum.weighted(curriculum.threshold)
