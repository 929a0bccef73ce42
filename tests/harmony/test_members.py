"""The rule for members: functions of Gram blocks are used bare, factories are called; other uses say what to write."""

import inspect
from functools import partial

import pytest
import torch

import harmony
from harmony import curriculum, realign, schedule, score

FACTORIES = [
    *(realign.gradvac, realign.pcgrad_random, realign.random),
    *(getattr(curriculum, name) for name in curriculum.__all__),
    *(score.ema, score.combined, score.least, score.negative, score.ranked, score.standardized),
    *(schedule.linear, schedule.cosine, schedule.polynomial, schedule.piecewise, schedule.warmup),
]
FUNCTIONS = [
    *(getattr(realign, name) for name in realign.__all__ if getattr(realign, name) not in FACTORIES),
    *(score.agreement, score.pair_cosine, score.norm_ratio, score.gradient_norm, score.batch_agreement),
    *(score.small_loss, score.similarity, score.triangle_area, score.reference_agreement),
    *(score.learnability, score.neighbours),
]


@pytest.mark.parametrize("factory", FACTORIES, ids=lambda f: f.__qualname__)
def test_a_factory_that_was_not_called_is_refused_at_once(factory):
    message = rf"{factory.__name__} makes a (transform|score|schedule): call it, {factory.__name__}\("
    uses = [
        harmony.chain,
        harmony.layerwise,
        curriculum.renormalized,
        curriculum.weighted,
        curriculum.threshold,
        score.ema,
        score.ranked,
        lambda member: curriculum.threshold(0.0, score=member),
        lambda member: harmony.chain(partial(member)),
    ]
    for use in uses:
        with pytest.raises(TypeError, match=message):
            use(factory)


def test_the_call_names_what_the_factory_needs():
    for factory, call in (
        (realign.gradvac, r"gradvac\(\)"),
        (curriculum.hysteresis, r"hysteresis\(low, high\)"),
        (curriculum.renormalized, r"renormalized\(member\)"),
        (curriculum.weighted, r"weighted\(\*members\)"),
    ):
        with pytest.raises(TypeError, match=f"makes a transform: call it, {call}"):
            harmony.chain(factory)
    with pytest.raises(TypeError, match=r"ema makes a score: call it, ema\(score\)"):
        curriculum.threshold(0, score=score.ema)
    with pytest.raises(TypeError, match=r"combined makes a score: call it, combined\(\*scores\)"):
        curriculum.quantile(0.5, score=score.combined)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__qualname__)
def test_a_function_that_was_called_without_blocks_says_how_it_is_used(function):
    message = rf"{function.__name__} is a function of Gram blocks: use it bare, or fix options by functools.partial\("
    for call in (function, partial(function, 0.4), partial(function, c=0.4)):
        with pytest.raises(TypeError, match=message):
            call()


def test_the_message_can_be_copied():
    with pytest.raises(TypeError, match=r"functools\.partial\(harmony\.realign\.cagrad, c=0\.4\)"):
        realign.cagrad(c=0.4)
    with pytest.raises(TypeError, match=r"functools\.partial\(harmony\.agreement, \.\.\.\)"):
        score.agreement()

    @harmony.samplewise
    def own(gram, scale=1.0):
        return gram[:, 0] * scale

    with pytest.raises(TypeError, match=r"own is a function.*functools\.partial\(own, scale=2\.0\)"):
        own(scale=2.0)
    assert own(gram=torch.eye(2)[None], scale=2.0).tolist() == [[2.0, 0.0]]


def test_signatures_and_docstrings_stay_visible():
    assert list(inspect.signature(realign.cagrad).parameters) == ["gram", "c", "preference"]
    assert list(inspect.signature(realign.gradvac).parameters) == ["target", "decay"]
    assert realign.cagrad.__doc__.startswith("Conflict-averse gradient")


def test_one_agreement():
    assert score.agreement is harmony.agreement
