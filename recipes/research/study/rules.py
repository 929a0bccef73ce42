"""The rules that the study compares: the recipe's, those of the literature, and the oracle, which knows the truth."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import harmony
from harmony import curriculum, schedule, score
from recipes.config import Config, CurriculumConfig, GramConfig, RealignConfig, TrainConfig
from recipes.model.objective import Objective
from recipes.research.study import curated
from recipes.research.study.literature import RobustObjective, mixture
from recipes.research.study.noise import Noisy
from recipes.research.study.rule import Rule, warmup_steps
from recipes.training.step import Weigh

SHARE = 0.5  # of a batch that rules with a fixed share keep; chosen beforehand, without a look at the noise
FEATURES = GramConfig(space="features")  # gradients at the video's representation, which both losses reach
LAYER = r"^backbone\.layers\.\d+"


def by_gradients(harmonize: str, **sections: Any) -> Rule:
    """A rule of the recipe that reads gradients."""
    return Rule("gradients", Config(harmonize=harmonize, **sections))


def keep_half(weigh: Weigh, by: score.AnyScore, **options: Any) -> Rule:
    """Keep the better half of each batch, after a warm-up that keeps everything."""
    return Rule(weigh, transform=lambda train, _: curriculum.quantile(falling_share(train), score=by), **options)


def falling_share(train: TrainConfig) -> schedule.Schedule:
    """The share that is kept: everything at first, a fixed share after the warm-up."""
    return schedule.linear(1.0, SHARE, steps=max(warmup_steps(train), 1))


def oracle(_: TrainConfig, noisy: Noisy) -> harmony.Transform:
    return harmony.Transform(lambda: (), lambda gram, state, *, ids, **_: (noisy.aligned[ids].to(gram.dtype), state))


def small_loss_each(train: TrainConfig, _: Noisy) -> harmony.Transform:
    """Keep, for each loss apart, the half of the pairs with the smaller loss."""
    share = falling_share(train)
    rules = [curriculum.quantile(share, partial(score.small_loss, losses=[k])) for k in (0, 1)]

    def update(gram: Tensor, state: Any, **extras: Any) -> tuple[Tensor, Any]:
        results = [rule.update(gram, s, **extras) for rule, s in zip(rules, state, strict=True)]
        weights = torch.stack([weights[:, k] for k, (weights, _) in enumerate(results)], 1)
        return weights, tuple(state for _, state in results)

    return harmony.Transform(lambda: tuple(rule.init() for rule in rules), update)


def fit_mixture(train: TrainConfig, noisy: Noisy) -> harmony.Transform:
    """Two Gaussians on the losses, fitted after every epoch once the warm-up is over."""
    epoch = max(len(noisy.clips) // train.batch_size, 1)
    return mixture(len(noisy.clips), epoch, max(warmup_steps(train), epoch))


def cross_check_half(train: TrainConfig, _: Noisy) -> harmony.Transform:
    """The recipe's cross_check, with a share that is given beforehand."""
    return curriculum.cross_check(warmup_steps(train), falling_share(train))


def similarity(objective: Objective, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
    """Similarity of each clip's video and text."""
    return {"similarity": objective.sides(embeddings)[:, 1].diagonal()}


CROSS_CHECK = Config(harmonize="curriculum", curriculum=CurriculumConfig(rule="cross_check"))
AT_ANCHOR = Config(harmonize="curriculum", gram=GramConfig(space="features", attribution="anchor"))
LOSS_AND_COSINE = score.combined(score.ranked(score.small_loss), score.ranked(score.agreement))
LOSS_OR_COSINE = score.negative(
    score.least(*(score.negative(score.ranked(s)) for s in (score.small_loss, score.agreement)))
)

RULES: dict[str, Rule] = {
    "baseline": Rule("nothing"),
    "oracle": Rule("terms", transform=oracle),
    # the paper's, over the shared backbone, and variants
    "realign": by_gradients("realign"),
    "curriculum": by_gradients("curriculum"),
    "realign + curriculum": by_gradients("both"),
    "realign + curriculum, last block": by_gradients("both", gram=GramConfig(wrt="last_block")),
    "realign + curriculum, last projection": by_gradients("both", gram=GramConfig(wrt="last_projection")),
    "realign, groups of 8": by_gradients("realign", gram=GramConfig(group_size=8)),
    "realign, layerwise": by_gradients("realign", realign=RealignConfig(layers=LAYER)),
    "cosine half, anchor features": keep_half("gradients", score.agreement, recipe=AT_ANCHOR),
    # other methods of realignment
    "mgda": by_gradients("realign", realign=RealignConfig(method="mgda"), gram=FEATURES),
    "gradvac": by_gradients("realign", realign=RealignConfig(method="gradvac"), gram=FEATURES),
    # losses together with gradients
    "loss + cosine half": keep_half("gradients", LOSS_AND_COSINE, recipe=AT_ANCHOR),
    "loss or cosine half": keep_half("gradients", LOSS_OR_COSINE, recipe=AT_ANCHOR),
    # of the literature on noisy correspondence
    "small loss half": keep_half("terms", score.small_loss),
    "small loss half, each": Rule("terms", transform=small_loss_each),
    "mixture": Rule("terms", transform=fit_mixture),
    "mixture, co-teaching": Rule("terms", transform=fit_mixture, networks=2),
    "rince": Rule("nothing", objective=RobustObjective),
    "similarity half": keep_half("terms", score.similarity, extras=similarity),
    # of the trusted clips
    "trusted alone": Rule("nothing", prepare=curated.trusted_alone),
    "curated": Rule("nothing", prepare=curated.weigh),
    "curated, then realign + curriculum": replace(by_gradients("both"), prepare=curated.weigh),
    # ours
    "cross_check": Rule("terms", CROSS_CHECK),
    "cross_check half": Rule("terms", CROSS_CHECK, transform=cross_check_half),
}
