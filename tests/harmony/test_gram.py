"""Gram blocks and pullbacks against brute-force autograd in float64: every reading, space, grouping and chunking."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

import harmony
from harmony.engines.call import leaf_names
from tests import zoo
from tests.harmony import oracle
from tests.harmony.options import keywords

ATTRIBUTIONS = ("activation", "loss", "anchor")
TOLERANCE = 1e-10


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.filterwarnings("ignore:.*has no closed form:UserWarning")
@pytest.mark.parametrize("attribution", ATTRIBUTIONS)
@pytest.mark.parametrize("name", zoo.CASES)
def test_gram_and_pullback_equal_brute_force(name, attribution):
    case = zoo.CASES[name]()
    expected = oracle.per_sample_gradients(*case, attribution=attribution)
    result = harmony.gram_vjp(*case, attribution=attribution)

    assert oracle.error_per_block({"all": result.gram}, {"all": oracle.gram_blocks(expected)}) < TOLERANCE
    by_name = harmony.gram_vjp(*case, attribution=attribution, labels=lambda name: name).gram
    assert oracle.error_per_block(by_name, {n: oracle.gram_blocks({n: g}) for n, g in expected.items()}) < TOLERANCE
    weights = torch.rand(result.gram.shape[:2], dtype=torch.float64)
    if attribution == "anchor":  # the weights multiply the loss terms: the update is loss-wise
        expected = oracle.per_sample_gradients(*case, attribution="loss")
    grads = result.pullback(weights)
    update = {n: torch.einsum("bk,bk...->...", weights, g) for n, g in expected.items()}
    assert oracle.error_per_parameter(grads, update) < TOLERANCE
    assert list(result.values) == list(case.losses(case.encode(case.params, case.batch)))


@pytest.mark.filterwarnings("ignore:.*has no closed form:UserWarning")
@pytest.mark.parametrize("attribution", ATTRIBUTIONS)
@pytest.mark.parametrize("name", zoo.CASES)
def test_weights_of_one_give_the_batch_gradient(name, attribution):
    case = zoo.CASES[name]()
    result = harmony.gram_vjp(*case, attribution=attribution)
    leaves = {n: p.clone().requires_grad_() for n, p in case.params.items()}
    total = sum(t.mean() for t in case.losses(case.encode(leaves, case.batch)).values())
    batch_gradient = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
    grads = result.pullback(torch.ones(result.gram.shape[:2], dtype=torch.float64))
    assert oracle.error_per_parameter(grads, dict(zip(leaves, batch_gradient, strict=True))) < TOLERANCE


@settings(max_examples=25)
@given(
    attribution=st.sampled_from(ATTRIBUTIONS),
    group_size=st.integers(1, zoo.B + 1),
    chunk_size=st.none() | st.integers(1, zoo.B + 1),
    method=st.sampled_from(["tape", "vmap", "loop"]),
    wrt=st.sampled_from([None, "backbone"]),
)
def test_groups_chunks_and_wrt(attribution, group_size, chunk_size, method, wrt):
    case = zoo.shared_backbone()
    predicate = None if wrt is None else lambda name: name.startswith(wrt)
    grads = oracle.per_sample_gradients(*case, attribution=attribution)
    selected = {n: g for n, g in grads.items() if predicate is None or predicate(n)}
    result = harmony.gram_vjp(
        *case,
        attribution=attribution,
        group_size=group_size,
        wrt=predicate,
        engine=harmony.Engine(chunk_size=chunk_size, method=method),
    )
    assert oracle.relative_error(result.gram, oracle.gram_blocks(selected, group_size)) < TOLERANCE
    weights = torch.rand(result.gram.shape[:2], dtype=torch.float64)
    if attribution == "anchor":
        grads = oracle.per_sample_gradients(*case, attribution="loss")
    per_sample = weights.repeat_interleave(group_size, 0)[: zoo.B]
    update = result.pullback(weights)
    expected = {n: torch.einsum("bk,bk...->...", per_sample, g) for n, g in grads.items()}
    assert oracle.error_per_parameter(update, expected) < TOLERANCE


@pytest.mark.parametrize("group_size", [1, 2])
@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("attribution", ATTRIBUTIONS)
def test_feature_space_is_the_gram_over_the_shared_embedding(attribution, chunk_size, group_size):
    """The features of the batch are parameters of an identity encoder, one row a sample."""
    case = zoo.shared_backbone()
    f = case.encode(case.params, case.batch)
    result = harmony.gram_vjp(
        *case,
        attribution=attribution,
        space="features",
        group_size=group_size,
        engine=harmony.Engine(chunk_size=chunk_size),
    )

    def gradient(k, b):
        leaf = f["video"].detach().requires_grad_()
        terms = case.losses({**f, "video": leaf})[k]
        (g,) = torch.autograd.grad(
            terms.mean() if attribution == "activation" else terms[b] / zoo.B, leaf, retain_graph=True
        )
        own = torch.zeros_like(g)
        own[b] = g[b]
        return g if attribution == "loss" else own

    rows = torch.stack([torch.stack([gradient(k, b).flatten() for k in ("va", "vt")]) for b in range(zoo.B)])
    assert oracle.relative_error(result.gram, oracle.gram_blocks({"features": rows}, group_size)) < TOLERANCE


def test_feature_space_by_leaf_name_counts_unreached_leaves_as_zero():
    case = zoo.shared_backbone()
    everything = harmony.gram_vjp(*case, space="features", feature_leaves=lambda name: True)
    video = harmony.gram_vjp(*case, space="features")
    torch.testing.assert_close(everything.gram[:, 0, 1], video.gram[:, 0, 1])  # only the video leaf is shared
    assert (everything.gram.diagonal(dim1=1, dim2=2) > video.gram.diagonal(dim1=1, dim2=2)).all()


def test_feature_space_without_a_shared_leaf_is_an_error():
    case = zoo.partly_reached()
    with pytest.raises(ValueError, match="every loss reaches"):
        harmony.gram_vjp(*case, space="features")


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("attribution", ATTRIBUTIONS)
@pytest.mark.parametrize("method", ["tape", "vmap", "loop"])
def test_dropout_has_one_mask_in_embeddings_gram_and_update(method, attribution, chunk_size):
    """With a linear encoder the mask can be read off the embeddings, and the exact gradients computed from it."""
    dropout = nn.Dropout(0.5)
    x = torch.rand(6, 4, dtype=torch.float64) + 1
    params = {"w": torch.ones(4, dtype=torch.float64)}
    result = harmony.gram_vjp(
        lambda p, x: dropout(x * p["w"]),
        lambda f: {"first": f[:, 0] ** 2, "all": f.sum(1)},
        params,
        x,
        attribution=attribution,
        engine=harmony.Engine(method=method, chunk_size=chunk_size),
    )
    mask = result.embeddings / x  # 0 or 2
    assert 0 < (mask == 0).sum() < mask.numel()
    first = torch.zeros_like(x)
    first[:, 0] = 2 * result.embeddings[:, 0] * result.embeddings[:, 0] / 6
    grads = torch.stack([first, result.embeddings / 6], dim=1)
    torch.testing.assert_close(result.gram, grads @ grads.mT)
    torch.testing.assert_close(result.pullback(torch.ones(6, 2, dtype=torch.float64))["w"], grads.sum((0, 1)))


def test_random_state_moves_on_between_calls_and_replays_do_not_disturb_it():
    dropout = nn.Dropout(0.5)
    call = (lambda p, x: dropout(x * p["w"]), lambda f: {"a": f.sum(1)}, {"w": torch.ones(64)}, torch.ones(4, 64))

    def embeddings():
        result = harmony.gram_vjp(*call, engine=harmony.Engine(chunk_size=2))
        result.pullback(torch.ones(4, 1))
        return result.embeddings

    torch.manual_seed(3)
    first, second = embeddings(), embeddings()
    torch.manual_seed(3)
    assert torch.equal(first, embeddings())
    assert torch.equal(second, embeddings())
    assert not torch.equal(first, second)


def recurrent(layer):
    net = layer(3, 4, batch_first=True).double()
    params = {n: p.detach() for n, p in net.named_parameters()}
    last = lambda p, x: functional_call(net, p, (x,))[0][:, -1]  # noqa: E731
    return zoo.Case(last, zoo.supervised, params, zoo.randn(zoo.B, 6, 3))


@pytest.mark.parametrize("layer", [nn.GRU, nn.LSTM, nn.RNN])
def test_recurrent_layers_by_vmap_fall_back_to_a_loop_with_a_warning(layer):
    case = recurrent(layer)
    expected = oracle.gram_blocks(oracle.per_sample_gradients(*case, attribution="activation"))
    with pytest.warns(UserWarning, match="Python loop"):
        assert (
            oracle.relative_error(harmony.gram_vjp(*case, engine=harmony.Engine(method="vmap")).gram, expected)
            < TOLERANCE
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in ("auto", "loop"):
            assert (
                oracle.relative_error(harmony.gram_vjp(*case, engine=harmony.Engine(method=method)).gram, expected)
                < TOLERANCE
            )


@pytest.mark.filterwarnings("ignore:.*has no closed form:UserWarning")
def test_nested_trees_shared_inputs_and_constant_outputs():
    params = {"layers": [{"w": zoo.randn(3, 3)}, {"w": zoo.randn(3, 3)}]}

    def encode(p, batch):
        x, (scale, name) = batch
        for layer in p["layers"]:
            x = (x @ layer["w"]).tanh() * scale
        return {"f": (x, x[:, 0]), "name": name}

    def losses(f):
        assert f["name"] == "tag"
        return {"a": f["f"][0].sum(1), "b": f["f"][1] ** 2}

    batch = (zoo.randn(4, 3), (torch.tensor(0.5, dtype=torch.float64), "tag"))
    result = harmony.gram_vjp(encode, losses, params, batch)
    looped = harmony.gram_vjp(encode, losses, params, batch, engine=harmony.Engine(method="loop"))
    torch.testing.assert_close(result.gram, looped.gram)
    assert leaf_names(result.pullback(torch.ones(4, 2, dtype=torch.float64))) == ["layers.0.w", "layers.1.w"]


@pytest.mark.parametrize("attribution", ATTRIBUTIONS)
def test_losses_with_parameters_and_batch_norm(attribution):
    """Heads with batch norm and a learnable temperature live in the losses stage; running statistics move once."""
    case = zoo.shared_backbone()

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
            self.log_temperature = nn.Parameter(torch.zeros(()))

        def forward(self, f):
            video, t = self.head(f["video"]), self.log_temperature.exp()
            return {
                "va": harmony.losses.info_nce(video, f["audio"][:, :4], temperature=t),
                "vt": harmony.losses.info_nce(video, f["text"][:, :4], temperature=t),
            }

    heads = Heads().double()
    reference = Heads().double()
    reference.load_state_dict(heads.state_dict())
    head_params = {n: p.detach() for n, p in heads.named_parameters()}
    result = harmony.gram_vjp(
        case.encode, lambda p, f: functional_call(heads, p, (f,)), case.params, case.batch,
        loss_params=head_params, attribution=attribution,
    )  # fmt: skip
    weights = torch.rand(result.gram.shape[:2], dtype=torch.float64)
    _, loss_grads = result.pullback(weights)

    terms = reference(case.encode(case.params, case.batch))
    total = (weights * torch.stack(list(terms.values()), dim=1)).sum() / zoo.B
    for n, g in zip(head_params, torch.autograd.grad(total, list(reference.parameters())), strict=True):
        torch.testing.assert_close(loss_grads[n], g)
    torch.testing.assert_close(dict(heads.named_buffers()), dict(reference.named_buffers()))
    assert int(heads.head[1].num_batches_tracked) == 1

    oracle_losses = Heads().double()
    oracle_losses.load_state_dict(reference.state_dict())
    expected = oracle.per_sample_gradients(case.encode, oracle_losses, case.params, case.batch, attribution=attribution)
    assert oracle.relative_error(result.gram, oracle.gram_blocks(expected)) < TOLERANCE


def test_scalar_losses_work_where_terms_are_not_needed():
    case = zoo.mlp()
    scalar = {"a": lambda f: f.pow(2).sum(1), "b": lambda f: f.sum(1)}
    expected = harmony.gram_vjp(case.encode, lambda f: {k: v(f) for k, v in scalar.items()}, *case[2:])
    as_scalar = lambda f: {k: v(f).mean() for k, v in scalar.items()}  # noqa: E731
    result = harmony.gram_vjp(case.encode, as_scalar, *case[2:])
    torch.testing.assert_close(result.gram, expected.gram)
    for attribution in ("loss", "anchor"):
        with pytest.raises(ValueError, match="came as one scalar: 'a', 'b'"):
            harmony.gram_vjp(case.encode, as_scalar, *case[2:], attribution=attribution)


def test_a_sample_without_text_keeps_its_other_gradient_and_is_undefined():
    case = zoo.shared_backbone()
    valid = torch.tensor([True, False, True, True, False])

    def losses(f):
        return {
            "va": harmony.losses.info_nce(f["video"], f["audio"]),
            "vt": harmony.losses.info_nce(f["video"], f["text"], valid=valid),
        }

    result = harmony.gram_vjp(case.encode, losses, *case[2:])
    assert (result.gram[~valid][:, 1] == 0).all() and (result.gram[~valid][:, :, 1] == 0).all()
    assert harmony.defined(result.gram).tolist() == valid.tolist()
    assert harmony.agreement(result.gram)[~valid].isnan().all()
    alone = harmony.gram_vjp(case.encode, lambda f: {"va": losses(f)["va"]}, *case[2:])
    torch.testing.assert_close(result.gram[:, 0, 0], alone.gram[:, 0, 0])


def test_a_batch_of_one():
    case = zoo.shared_backbone()
    batch = {m: x[:1] for m, x in case.batch.items()}
    result = harmony.gram_vjp(case.encode, case.losses, case.params, batch)
    assert all(v == 0 for v in result.values.values())  # nothing to tell apart
    assert (result.gram == 0).all() and not harmony.defined(result.gram).any()
    assert all((g == 0).all() for g in result.pullback(torch.ones(1, 2)).values())


@pytest.mark.parametrize("track", [True, False])
def test_batch_norm_in_training_mode_is_refused(track):
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=track)).double()
    case = zoo.from_module(net, zoo.randn(4, 3))
    for options in ({}, {"method": "vmap"}, {"method": "loop"}, {"attribution": "anchor"}):
        with pytest.raises(ValueError, match=r"batch normalisation .*in training mode"):
            harmony.gram_vjp(*case, **keywords(**options))
    if track:
        harmony.gram_vjp(*zoo.from_module(net.eval(), zoo.randn(4, 3)))


def test_errors_say_what_was_expected():
    case = zoo.mlp()
    with pytest.raises(ValueError, match=r"same leading axis.*'x': 4, 'y': 3"):
        harmony.gram_vjp(case.encode, case.losses, case.params, {"x": torch.ones(4), "y": torch.ones(3)})
    with pytest.raises(ValueError, match=r"wrt selects none of the parameters: 0\.weight, 0\.bias"):
        harmony.gram_vjp(*case, wrt=lambda name: False)
    with pytest.raises(TypeError, match=r"params\['ids'\] must be a floating-point tensor; got torch.int64"):
        harmony.gram_vjp(case.encode, case.losses, {"ids": torch.ones(2, dtype=torch.int64)}, case.batch)
    with pytest.raises(
        ValueError, match=r"loss 'bad' must be a scalar or have one term per sample, shape \(5,\); got \(5, 3\)"
    ):
        harmony.gram_vjp(case.encode, lambda f: {"bad": f}, *case[2:])
    with pytest.raises(TypeError, match="dictionary of at least one loss"):
        harmony.gram_vjp(case.encode, lambda f: f.mean(), *case[2:])
    with pytest.raises(ValueError, match="expected a leading axis of 5"):
        harmony.gram_vjp(lambda p, x: case.encode(p, x).mean(), case.losses, *case[2:])
    with pytest.raises(ValueError, match="method must be one of 'auto', 'tape', 'vmap', 'loop'; got 'fast'"):
        harmony.gram_vjp(*case, engine=harmony.Engine(method="fast"))
    with pytest.raises(ValueError, match="no output of encode depends on params"):
        harmony.gram_vjp(lambda p, x: x, case.losses, *case[2:])
    result = harmony.gram_vjp(*case)
    with pytest.raises(ValueError, match=r"weights of shape \(5, 3\).*got \(5,\)"):
        result.pullback(torch.ones(5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_lower_precision_accumulates_in_float32(dtype):
    case = zoo.mlp()
    params = {n: p.to(dtype) for n, p in case.params.items()}
    result = harmony.gram_vjp(case.encode, case.losses, params, case.batch.to(dtype))
    assert result.gram.dtype == torch.float32
    exact = harmony.gram_vjp(*case)
    assert oracle.relative_error(result.gram.double(), exact.gram) < (0.1 if dtype == torch.bfloat16 else 1e-4)
    assert all(g.dtype == dtype for g in result.pullback(torch.ones(result.gram.shape[:2])).values())


def test_under_autocast_products_are_still_accumulated_in_float32():
    case = zoo.mlp()
    params, batch = {n: p.float() for n, p in case.params.items()}, case.batch.float()
    exact = harmony.gram_vjp(case.encode, case.losses, params, batch)
    for options in ({}, {"attribution": "loss"}, {"space": "features"}, {"chunk_size": 2}):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = harmony.gram_vjp(case.encode, case.losses, params, batch, **keywords(**options))
            grads = result.pullback(torch.ones(result.gram.shape[:2]))
        assert result.gram.dtype == torch.float32 and all(g.dtype == torch.float32 for g in grads.values())
        if "space" not in options and "attribution" not in options:
            assert oracle.relative_error(result.gram, exact.gram) < 0.1
