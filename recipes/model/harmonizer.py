"""The harmonizer a configuration asks for: a curriculum, a realignment, both or none. The defaults are the paper's."""

import re
from functools import partial
from typing import Any

import torch
from torch import Tensor

import harmony
from recipes.config import LAST_PARTS, WITH_MEMORY, Config, CurriculumConfig, GammaConfig, RealignConfig


def harmonizer(config: Config) -> harmony.Transform:
    """Drop clips by a curriculum, then realign what conflicts; see `harmonize` in the configuration."""
    members = []
    if config.has_curriculum:
        members.append(curriculum(config.curriculum, gamma_schedule(config.gamma, config.train.steps)))
    if config.has_realignment:
        members.append(realignment(config.realign, config.train.seed))
    return harmony.chain(*members)


def realignment(realign: RealignConfig, seed: int) -> harmony.Transform:
    """A method of `harmony.realign`; for each layer apart, where there is a pattern of them."""
    method = getattr(harmony.realign, realign.method)
    if realign.method in WITH_MEMORY:
        method = method() if realign.method == "gradvac" else method(seed=seed)
    method = for_defined(method)
    return method if realign.layers is None else harmony.layerwise(method)


def for_defined(member: harmony.transform.Member) -> harmony.Transform:
    """The same method for clips that have an agreement; those that lack a modality get weights of one.

    Some methods would weigh a lone gradient, too: give it length one, or half of the step.
    """
    transform = harmony.chain(member)

    def update(gram: Tensor, state: Any, **extras: Any) -> tuple[Tensor, Any]:
        weights, state = transform.update(gram, state, **extras)
        return torch.where(harmony.defined(gram)[:, None], weights, 1), state

    return transform._replace(update=update)


def curriculum(options: CurriculumConfig, gamma: harmony.schedule.Schedule) -> harmony.Transform:
    """A rule of `harmony.curriculum` on its score; thresholds compare the score with ``gamma``."""
    score = getattr(harmony.score, options.score)
    if options.history:
        score = harmony.score.ema(score, options.history)
    rule = {
        "threshold": lambda: harmony.curriculum.threshold(gamma, score=score),
        "soft_threshold": lambda: harmony.curriculum.soft_threshold(gamma, options.temperature, score=score),
        "quantile": lambda: harmony.curriculum.quantile(options.share, score=score),
        "running_quantile": lambda: harmony.curriculum.running_quantile(options.share, score=score),
        "agreement_weight": lambda: harmony.curriculum.agreement_weight(score=score),
        "cross_check": lambda: harmony.curriculum.cross_check(options.warmup),
    }[options.rule]()
    return harmony.curriculum.renormalized(rule) if options.renormalize else rule


def compares_with_gamma(config: Config) -> bool:
    """Whether the rule compares agreement with gamma."""
    options = config.curriculum
    return config.has_curriculum and options.rule.endswith("threshold") and options.score == "agreement"


def described(config: Config) -> str:
    """The harmonizer in words."""
    parts = []
    if config.has_curriculum:
        options, gamma = config.curriculum, config.gamma
        number = {
            "quantile": f", share {options.share:g}",
            "running_quantile": f", share {options.share:g}",
            "agreement_weight": "",
            "cross_check": f", warm-up {options.warmup}",
        }.get(options.rule, f", gamma {gamma.start:g}")
        if options.rule.endswith("threshold") and gamma.schedule != "constant":
            number += f" to {gamma.end:g}, {gamma.schedule}"
        past = f" (history {options.history:g})" if options.history else ""
        of = "the third side" if options.rule == "cross_check" else f"{options.score}{past}"
        parts.append(f"{options.rule} of {of}{number}{', renormalized' * options.renormalize}")
    if config.has_realignment:
        parts.append(config.realign.method + (f" by {config.realign.layers}" if config.realign.layers else ""))
    return "; ".join(parts) or "none"


def gamma_schedule(gamma: GammaConfig, steps: int) -> harmony.schedule.Schedule:
    """The threshold as a function of the step."""
    steps = gamma.steps or steps
    return {
        "linear": lambda: harmony.schedule.linear(gamma.start, gamma.end, steps),
        "cosine": lambda: harmony.schedule.cosine(gamma.start, gamma.end, steps),
        "constant": lambda: harmony.schedule.as_schedule(gamma.start),
    }[gamma.schedule]()


def gram_options(config: Config) -> dict[str, Any]:
    """Keywords of `harmony.backward`: how `gram` reads gradients, and the layers of `realign.layers`."""
    gram, in_space = config.gram, {}
    if gram.space == "parameters":
        in_space["wrt"] = gram.wrt if gram.wrt in LAST_PARTS else partial(_matches, gram.wrt or "")
        if config.realign.layers is not None and config.has_realignment:
            in_space["labels"] = partial(_layer, config.realign.layers)
    return {
        "attribution": gram.attribution,
        "space": gram.space,
        "group_size": gram.group_size,
        "products_with": "batch" if config.has_curriculum and config.curriculum.score == "batch_agreement" else None,
        "engine": harmony.Engine(chunk_size=gram.chunk_size),
        **in_space,
    }


def _matches(pattern: str, name: str) -> bool:
    return re.search(pattern, name) is not None


def _layer(pattern: str, name: str) -> str:
    """The layer of a parameter: the match of a regular expression in its name."""
    match = re.search(pattern, name)
    return "the rest" if match is None else match.group()
