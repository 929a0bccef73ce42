"""Clips without sound or without text: no method and no rule touches their gradients, nor do they touch the others'."""

from functools import cache
from typing import NamedTuple, get_args, get_type_hints

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from recipes.config import Config, CurriculumConfig, GammaConfig, GramConfig, ObjectiveConfig, RealignConfig
from recipes.model.build import chosen_parameters
from recipes.model.harmonizer import harmonizer
from recipes.model.objective import Objective
from recipes.training.setup import step_options
from recipes.training.step import Learner, train_step
from tests.harmony import oracle
from tests.recipes.test_model import batch, model

WHOLE, NO_TEXT, NO_SOUND, NEITHER = (True, True), (True, False), (False, True), (False, False)
MIXTURES = {  # whole clips first: what a method draws at random depends on the place in the batch
    "no text": [WHOLE] * 4 + [NO_TEXT] * 2,
    "no sound": [WHOLE] * 4 + [NO_SOUND] * 2,
    "all kinds": [WHOLE] * 3 + [NO_TEXT, NO_SOUND, NEITHER],
    "nothing whole": [NO_TEXT] * 3 + [NO_SOUND] * 3,
    "a lone text": [WHOLE] + [NO_TEXT] * 5,  # which has nothing to be told from
}
METHODS = get_args(get_type_hints(RealignConfig)["method"])
RULES = get_args(get_type_hints(CurriculumConfig)["rule"])
SCORES = get_args(get_type_hints(CurriculumConfig)["score"])
SIZE, STEPS = 6, 2  # the second step is compared: by then rules and methods with a memory remember something


def networks():
    net = model(dropout=0.0, drop_token=0.0).double()
    return net, Objective(ObjectiveConfig(audio_space=6, text_space=5, temperature=0.5), 96).double()


def inputs_of(mixture: str) -> dict[str, Tensor]:
    inputs = {name: x.double() if x.is_floating_point() else x for name, x in batch(SIZE).items()}
    heard, told = (torch.tensor(flags) for flags in zip(*MIXTURES[mixture], strict=True))
    inputs["audio_valid"], inputs["text_valid"] = heard, inputs["text_valid"] & told[:, None]
    inputs["audio"] = inputs["audio"] * heard[:, None]
    inputs["text"] = inputs["text"] * told[:, None, None]
    return inputs


class Found(NamedTuple):
    """What plain autograd finds, sample by sample."""

    grads: dict[str, dict[str, Tensor]]  # {attribution: {parameter: (B, K, ...)}}
    features: Tensor  # gradients (B, K, d) at the video, which both losses reach
    terms: Tensor


@cache
def by_autograd(mixture: str) -> Found:
    net, objective = networks()
    inputs = inputs_of(mixture)
    params = {name: p.detach() for name, p in net.named_parameters()}

    def encode(p, b):
        return functional_call(net, p, (), b)

    attributions = ("activation", "loss", "anchor") if mixture == "all kinds" else ("activation",)
    grads = {a: oracle.per_sample_gradients(encode, objective, params, inputs, a) for a in attributions}
    embeddings = net(**inputs)
    terms = list(objective(embeddings).values())
    features = torch.stack([torch.autograd.grad(t.mean(), embeddings["video"], retain_graph=True)[0] for t in terms], 1)
    return Found(grads, features, torch.stack(terms, 1).detach())


def weights_of(config: Config, mixture: str) -> Tensor:
    """Ones, but for the whole clips: what the harmonizer makes of them where there are no others."""
    found, count = by_autograd(mixture), MIXTURES[mixture].count(WHOLE)
    if not count:
        return torch.ones(SIZE, 2).double()
    grads = found.grads[config.gram.attribution]
    if config.gram.space == "features":
        grads = {"video": found.features}
    elif config.gram.wrt:
        grads = {name: grads[name] for name in chosen_parameters(config.gram.wrt, networks()[0])}
    flat = torch.cat([g.flatten(2) for g in grads.values()], 2)
    gram, products = flat @ flat.mT, flat @ flat.sum((0, 1))
    # That one score compares with the gradient of the whole batch, in which clips without text have their part.
    seen = slice(SIZE if config.curriculum.score == "batch_agreement" else count)
    net, objective = networks()
    sides = objective.sides(net(**inputs_of(mixture)))[seen][:, :, seen]
    extras = {
        "terms": found.terms[seen],
        "batch_products": products[seen],
        "batch_square": products.sum(),
        "ids": torch.arange(SIZE)[seen],
        "sides": sides,
    }
    transform = harmonizer(config)
    state = transform.init()
    for _ in range(STEPS):
        weights, state = transform.update(gram[seen], state, **extras)
    return torch.cat([weights[:count], torch.ones(SIZE - count, 2)])


def assert_bypassed(config: Config, mixture: str) -> None:
    """A step of the recipe gives the gradient that plain autograd gives, with weights for the whole clips alone."""
    net, objective = networks()
    inputs, modules = inputs_of(mixture), torch.nn.ModuleDict({"model": net, "objective": objective})
    learner = Learner(modules, torch.optim.SGD(modules.parameters(), lr=0.0), harmonizer(config))
    for step in range(STEPS):
        result = train_step(learner, inputs, step_options(config, step))
    assert result.taken

    weights = weights_of(config, mixture)
    of_samples = by_autograd(mixture).grads["activation" if config.gram.attribution == "activation" else "loss"]
    expected = {n: torch.einsum("bk,bk...->...", weights, g) for n, g in of_samples.items()}
    got = {n: p.grad for n, p in net.named_parameters()}
    assert error(got, expected) < 1e-12

    terms = torch.stack(list(objective(net(**inputs)).values()), 1)
    heads = dict(objective.named_parameters())
    grads = torch.autograd.grad((weights * terms).sum() / SIZE, list(heads.values()))
    assert error({n: p.grad for n, p in heads.items()}, dict(zip(heads, grads, strict=True))) < 1e-12


def error(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Of all parameters together, relative."""
    a, b = (torch.cat([grads[n].flatten() for n in expected]) for grads in (got, expected))
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("method", METHODS)
def test_no_method_realigns_what_lacks_a_modality(method, mixture):
    assert_bypassed(Config(harmonize="realign", realign=RealignConfig(method)), mixture)


@pytest.mark.parametrize("method", ["mean", "normalized", "pcgrad"])
def test_nor_layer_by_layer(method):
    layers = RealignConfig(method, r"^backbone\.layers\.\d+")
    assert_bypassed(Config(harmonize="realign", realign=layers), "nothing whole")


PAIRS = [  # those that the configuration does not refuse
    (rule, score)
    for rule in RULES
    for score in SCORES
    if rule.endswith("quantile") or score not in ("small_loss", "gradient_norm")
    if rule != "cross_check" or score == "agreement"
]


@pytest.mark.parametrize("mixture", ["all kinds", "nothing whole", "a lone text"])
@pytest.mark.parametrize(("rule", "score"), PAIRS)
def test_no_rule_drops_or_weighs_it(rule, score, mixture):
    options = CurriculumConfig(rule, score, share=0.5, history=0.5, renormalize=True)
    assert_bypassed(Config(harmonize="both", curriculum=options, gamma=GammaConfig(0.0)), mixture)


READINGS = {
    "loss": GramConfig("loss"),
    "anchor": GramConfig("anchor"),
    "features": GramConfig(space="features"),
    "chunks": GramConfig(chunk_size=4),
    "all parameters": GramConfig(wrt=None),
    "last block": GramConfig(wrt="last_block"),
}


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("method", ["pcgrad", "normalized"])
def test_however_gradients_are_read(reading, method):
    config = Config(realign=RealignConfig(method), gamma=GammaConfig(0.0), gram=READINGS[reading])
    assert_bypassed(config, "all kinds")
