"""Inner products of per-sample gradients with one gradient, given or of the batch, against brute force in float64."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import harmony
from harmony import curriculum, score
from tests import zoo
from tests.harmony import oracle
from tests.harmony.options import keywords
from tests.harmony.test_layerwise import by_module
from tests.harmony.test_tape import cast, truth_of

METHODS = ("tape", "vmap", "loop")
OPTIONS = {
    "group_size": st.integers(1, zoo.B + 1),
    "chunk_size": st.none() | st.integers(1, zoo.B + 1),
    "method": st.sampled_from(METHODS),
    "update": st.sampled_from(["auto", "kept", "tape", "backward"]),
    "memory": st.sampled_from([1, 2**20]),
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def direction_of(params, seed=0):
    """A gradient that has nothing to do with the batch."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, dtype=torch.float64, generator=generator) for name, p in params.items()}


def summed(truth):
    """The gradient of the batch."""
    return {name: g.sum((0, 1)) for name, g in truth.items()}


def products_of(truth, direction, names=None, group_size=1):
    """Inner products (groups, K) of gradients {name: (B, K, *shape)} with one."""
    names = list(truth) if names is None else names
    products = sum(
        torch.einsum("bkp,p->bk", truth[n].reshape(*truth[n].shape[:2], -1), direction[n].flatten()) for n in names
    )
    return torch.stack([part.sum(0) for part in products.split(group_size)])


LABELS = ("backbone.0", "backbone.1", "tokens")


def of_label(names, label):
    return [n for n in names if by_module(n) == label]


@settings(max_examples=80)
@given(
    attribution=st.sampled_from(["activation", "loss", "anchor"]),
    of_batch=st.booleans(),
    labels=st.booleans(),
    loss_scale=st.sampled_from([None, 2.0**10]),
    **OPTIONS,
)
def test_products_of_every_engine(attribution, of_batch, labels, loss_scale, group_size, update, **engine):
    case = zoo.shared_backbone()
    of_batch = of_batch and attribution != "anchor"
    truth = oracle.per_sample_gradients(*case, attribution=attribution)
    direction = summed(truth) if of_batch else direction_of(case.params)
    result = harmony.gram_vjp(
        *case,
        wrt=None if labels else lambda n: by_module(n) is not None,
        labels=by_module if labels else None,
        attribution=attribution,
        products_with="batch" if of_batch else direction,
        loss_scale=None if loss_scale is None else torch.tensor(loss_scale),
        **keywords(update=update if attribution == "activation" else "auto", group_size=group_size, **engine),
    )
    expected = {label: products_of(truth, direction, of_label(truth, label), group_size) for label in LABELS}
    torch.testing.assert_close(result.products, expected if labels else sum(expected.values()), rtol=1e-9, atol=1e-11)
    chosen = {n: g for n, g in truth.items() if by_module(n) is not None}
    whole = sum(result.gram.values()) if labels else result.gram
    assert oracle.relative_error(whole, oracle.gram_blocks(chosen, group_size)) < 1e-10


@pytest.mark.filterwarnings("ignore:.* has no closed form")
@pytest.mark.parametrize("options", [{}, {"memory": 1, "group_size": 2}], ids=str)
@pytest.mark.parametrize("name", zoo.CASES)
def test_products_of_every_architecture(name, options):
    case = zoo.CASES[name]()
    truth, direction = truth_of(case), direction_of(case.params)
    result = harmony.gram_vjp(*case, products_with=direction, **keywords(method="tape", **options))
    expected = products_of(truth, direction, group_size=options.get("group_size", 1))
    assert oracle.relative_error(result.products, expected) < 1e-9


def test_products_with_the_batch_at_the_features():
    case = zoo.shared_backbone()
    result = harmony.gram_vjp(*case, space="features", products_with="batch", group_size=2)
    f = {n: x.detach().requires_grad_() for n, x in case.encode(case.params, case.batch).items()}
    terms = case.losses(f)
    rows = torch.stack([torch.autograd.grad(t.mean(), f["video"], retain_graph=True)[0] for t in terms.values()], 1)
    expected = torch.einsum("bkd,d->bk", rows, rows.sum((0, 1)))
    torch.testing.assert_close(result.products, torch.stack([part.sum(0) for part in expected.split(2)]))
    assert result.gram.shape == (3, 2, 2)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01), (torch.float32, 1e-4)])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("given_dtype", [torch.float64, torch.float32, None])
def test_products_in_low_precision_are_sums_in_float32(dtype, tolerance, method, given_dtype):
    case = zoo.mlp()
    truth, direction = truth_of(case), direction_of(case.params)
    low = cast(case, dtype)
    seen = {n: v.to(dtype if given_dtype is None else given_dtype) for n, v in direction.items()}
    products = harmony.gram_vjp(*low, products_with=seen, **keywords(method=method)).products
    assert products.dtype == torch.float32
    assert oracle.relative_error(products.double(), products_of(truth, direction)) < tolerance


def test_under_autocast_products_are_those_of_the_same_gradients():
    case = cast(zoo.mlp(), torch.float32)
    direction = direction_of(case.params)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = harmony.gram_vjp(*case, products_with=direction, engine=harmony.Engine(update="tape"))
        single = [result.pullback(weights) for weights in torch.eye(zoo.B)[:, :, None].expand(-1, -1, 3)]
    expected = torch.stack([sum((g[n].double() * direction[n]).sum() for n in g) for g in single])
    assert result.products.dtype == torch.float32
    assert oracle.relative_error(result.products.sum(1).double(), expected) < 1e-5


# --------------------------------------------------------------------------------------------------- what users give
def test_a_gradient_may_be_a_tree_and_lack_what_no_gram_is_over():
    case = zoo.shared_backbone()
    direction, truth = direction_of(case.params), truth_of(case)
    chosen = [n for n in case.params if n.startswith("backbone.0")]
    for given_gradient in (direction, {n: direction[n] for n in chosen}):
        result = harmony.gram_vjp(*case, wrt=lambda n: n in chosen, products_with=given_gradient)
        torch.testing.assert_close(result.products, products_of(truth, direction, chosen))

    nested = {"head": {"w": torch.eye(2)}, "scale": [torch.tensor(2.0)]}
    encode = lambda p, x: x @ p["head"]["w"] * p["scale"][0]  # noqa: E731
    losses = lambda f: {"sum": f.sum(1), "first": f[:, 0]}  # noqa: E731
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    tree = harmony.gram_vjp(encode, losses, nested, x, products_with=nested).products
    flat = {"head.w": torch.eye(2), "scale.0": torch.tensor(2.0)}
    assert torch.equal(harmony.gram_vjp(encode, losses, nested, x, products_with=flat).products, tree)
    assert tree[:, 1].tolist() == [(2 * 1 + 2 * 1) / 2, (2 * 3 + 2 * 3) / 2]


def test_the_gradient_of_a_parameter_that_no_loss_reaches_may_be_none():
    case = zoo.shared_backbone()
    direction, truth = direction_of(case.params), truth_of(case)
    name = next(iter(direction))
    expected = products_of(truth, direction | {name: torch.zeros_like(direction[name])})
    for method in METHODS:
        result = harmony.gram_vjp(*case, products_with=direction | {name: None}, **keywords(method=method))
        torch.testing.assert_close(result.products, expected)


def test_products_with_shared_parameters_alone():
    case = zoo.shared_backbone()
    direction, truth = direction_of(case.params), truth_of(case)
    shared = [n for n in truth if (truth[n].flatten(2).norm(dim=2) > 0).any(0).all()]
    assert 0 < len(shared) < len(truth)
    result = harmony.gram_vjp(*case, wrt="shared", products_with=direction)
    torch.testing.assert_close(result.products, products_of(truth, direction, shared))

    seen = {}
    keep = harmony.Transform(tuple, lambda gram, state, **extras: (seen.update(extras) or gram[:, 0] * 0, state))
    harmony.harmonized_grad(case.encode, case.losses, keep, wrt="shared", products_with=direction)(
        case.params, case.batch, ()
    )
    torch.testing.assert_close(seen["reference_square"], sum(direction[n].square().sum() for n in shared))
    assert seen.keys() >= {"reference_products", "terms"} and "batch_square" not in seen


def refuse(params, batch):
    raise AssertionError("the encoder was run")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda v: v | {"backbone.9": v["scale"]}, ValueError, r"has backbone\.9\. Names of the parameters: "),
        (lambda v: {n: x for n, x in v.items() if n != "scale"}, ValueError, r"it lacks scale\. Names"),
        (lambda v: v | {"scale": torch.ones(7)}, ValueError, r"\['scale'\] must have the shape of the .*got \(7,\) on"),
        (lambda v: v | {"scale": v["scale"].to("meta")}, ValueError, r"its device, cpu; got .* on meta"),
        (lambda v: v | {"scale": 1.0}, TypeError, r"products_with\['scale'\] must be a tensor or None; got float"),
        (lambda v: "bach", ValueError, "products_with must be \"batch\", or a gradient, .*; got 'bach'"),
        (lambda v: True, ValueError, r"or a gradient, {name of a parameter: tensor}; got True"),
    ],
)
def test_what_fits_no_parameter_is_refused_before_any_work(change, error, message):
    case = zoo.shared_backbone()
    with pytest.raises(error, match=message):
        harmony.gram_vjp(refuse, *case[1:], products_with=change(direction_of(case.params)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attribution": "anchor", "products_with": "batch"}, '"anchor" gradients do not add up'),
        (
            {"space": "features", "products_with": {"scale": torch.ones(())}},
            "which a gradient of parameters does not fit",
        ),
        ({"space": "features", "attribution": "loss", "products_with": "batch"}, 'with attribution="activation" alone'),
    ],
)
def test_products_that_would_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        harmony.gram_vjp(*zoo.shared_backbone(), **options)


# ------------------------------------------------------------------------------------------------------ scores by them
@settings(max_examples=30)
@given(labels=st.booleans(), samplewise=st.booleans(), kind=st.sampled_from(["batch", "reference"]), **OPTIONS)
def test_a_step_weighs_by_the_cosine(labels, samplewise, kind, group_size, **engine):
    assume(kind == "reference" or group_size < zoo.B)  # a group alone: what is left of the batch is a rounding error
    case = zoo.shared_backbone()
    truth = truth_of(case)
    direction = direction_of(case.params) if kind == "reference" else summed(truth)
    rule = curriculum.agreement_weight(score=getattr(score, f"{kind}_agreement"))
    rule = rule if samplewise else rule._replace(samplewise=False)
    harmonizer = harmony.chain(harmony.layerwise(rule), rule) if labels else rule
    step = harmony.harmonized_grad(
        case.encode,
        case.losses,
        harmonizer,
        labels=by_module if labels else None,
        products_with="batch" if kind == "batch" else direction,
        **keywords(group_size=group_size, **engine),
    )
    update, _, info = step(case.params, case.batch, harmonizer.init())
    names = [n for n in truth if by_module(n) is not None] if labels else list(truth)
    grouped = {n: torch.stack([part.sum(0) for part in g.split(group_size)]) for n, g in truth.items()}

    def factor(names):
        g = torch.cat([grouped[n].sum(1).flatten(1) for n in names], 1)
        v = torch.cat([direction[n].flatten() for n in names])[None]
        return (1 + torch.cosine_similarity(g, v - g if kind == "batch" else v)) / 2

    expected = factor(names)
    by_label = {label: expected * factor(of_label(names, label)) for label in LABELS}
    for label, weights in info.weights_of.items():
        torch.testing.assert_close(weights[:, 0], by_label[label])
    if not labels:
        torch.testing.assert_close(info.weights[:, 0], expected)
    torch.testing.assert_close(info.products, products_of(grouped, direction, names), rtol=1e-9, atol=1e-11)
    for name, g in grouped.items():
        rows = by_label.get(by_module(name), sum(by_label.values()) / len(LABELS)) if labels else expected
        torch.testing.assert_close(update[name], torch.einsum("b,bk...->...", rows, g), rtol=1e-8, atol=1e-12)


@given(seed=st.integers(0, 10_000), loss=st.none() | st.integers(0, 1))
def test_reference_agreement_is_the_cosine_with_the_given_gradient(seed, loss):
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(7, 2, 4, dtype=torch.float64, generator=generator)
    g[torch.rand(7, 2, generator=generator) < 0.2] = 0
    v = torch.randn(4, dtype=torch.float64, generator=generator)
    chosen = None if loss is None else [loss]
    got = score.reference_agreement(g @ g.mT, reference_products=g @ v, reference_square=v @ v, losses=chosen)
    rows = g.sum(1) if loss is None else g[:, loss]
    seen = harmony.defined(g @ g.mT)
    torch.testing.assert_close(got[seen], torch.cosine_similarity(rows, v[None])[seen])
    assert got[~seen].isnan().all()
    assert score.reference_agreement(g @ g.mT, reference_products=g @ v * 0, reference_square=v @ v * 0).isnan().all()


def test_weights_of_the_data_weigh_products_too():
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(7, 2, 4, dtype=torch.float64, generator=generator)
    v, weights = torch.randn(4, dtype=torch.float64, generator=generator), torch.rand(7, 2, generator=generator)
    rule = curriculum.agreement_weight(score=score.reference_agreement)
    known = {"reference_products": g @ v, "reference_square": v @ v}
    got, _ = curriculum.weighted(rule).update(g @ g.mT, curriculum.weighted(rule).init(), weights=weights, **known)
    cosine = torch.cosine_similarity((weights[..., None] * g).sum(1), v[None])
    torch.testing.assert_close(got, weights.double() * ((1 + cosine) / 2)[:, None])


def test_a_trusted_batch_judges_another_one():
    model, losses = torch.nn.Linear(5, 3).double(), zoo.supervised
    x, trusted = zoo.randn(6, 5), zoo.randn(4, 5)
    params = dict(model.named_parameters())
    total = sum(term.mean() for term in losses(model(trusted)).values())
    direction = dict(zip(params, torch.autograd.grad(total, params.values()), strict=True))
    info = harmony.measure(model, x, losses, products_with=direction)
    # A small step along the trusted gradient lowers a sample's summed losses by its product.
    before = sum(losses(model(x)).values())
    with torch.no_grad():
        for name, p in params.items():
            p -= 1e-6 * direction[name]
    after = sum(losses(model(x)).values())
    torch.testing.assert_close(info.products.sum(1), (before - after) / 1e-6 / len(x), rtol=1e-4, atol=1e-7)
    assert torch.equal(info.weights, torch.ones(6, 3, dtype=torch.float64)) and model.weight.grad is None


def test_batch_products_and_given_ones_are_not_taken_for_each_other():
    case = zoo.shared_backbone()
    for products_with, wrong in (
        ("batch", score.reference_agreement),
        (direction_of(case.params), score.batch_agreement),
    ):
        rule = curriculum.threshold(score=wrong)
        step = harmony.harmonized_grad(case.encode, case.losses, rule, products_with=products_with)
        with pytest.raises(ValueError, match=r"call the step with products_with="):
            step(case.params, case.batch, rule.init())
