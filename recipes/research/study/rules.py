"""What the study compares: rules of the library, those of the literature, and the oracle that knows the truth."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import harmony
from harmony import curriculum, realign, schedule, score
from recipes.model.objective import Objective
from recipes.research.study.mixture import mixture

SHARE = 0.5  # of a batch that rules by rank keep: fixed beforehand, without a look at the noise
WARMUP = 0.1  # share of the steps in which rules of the literature keep everything
GAMMA = (-0.3, 0.0)  # of the paper's curriculum


@dataclass(frozen=True)
class Context:
    """What a rule may know: the number of clips, the length of the run; and the truth, which the oracle alone reads."""

    clips: int
    steps: int
    batch_size: int
    aligned: Tensor


Make = Callable[[Context], harmony.Transform]


@dataclass(frozen=True)
class Rule:
    """How clips are weighed.

    Attributes:
        transform: Makes the harmonizer.
        gram: Options of `harmony.backward`; None where gradients of single clips are not needed.
        extras: What the harmonizer sees of the embeddings.
        networks: 2 for co-teaching: each is weighed by the other.
        robust: Train with RINCE.
    """

    transform: Make
    gram: dict[str, Any] | None = None
    extras: Callable[[Objective, dict[str, Tensor]], dict[str, Tensor]] | None = None
    networks: int = 1
    robust: bool = False


def in_backbone(name: str) -> bool:
    """Whether a parameter is one of the shared transformer's."""
    return name.startswith("backbone.")


PARAMETERS = {"wrt": in_backbone}  # the paper's: over the shared backbone
FEATURES = {"space": "features"}  # at the video's representation, which both losses reach
ANCHOR = {"space": "features", "attribution": "anchor"}


def layer_of(name: str) -> str:
    """The layer of the shared transformer that a parameter is in."""
    return ".".join(name.split(".")[:3])


def warm(context: Context, share: float) -> schedule.Schedule:
    """Keep everything at first, then by and by a share."""
    return schedule.linear(1.0, share, steps=max(round(WARMUP * context.steps), 1))


def keep_half(of: score.AnyScore) -> Make:
    """Keep the better half of each batch."""
    return lambda context: curriculum.quantile(warm(context, SHARE), score=of)


def always(*members: harmony.transform.Member) -> Make:
    """A harmonizer that depends on nothing."""
    return lambda context: harmony.chain(*members)


def paper(*members: harmony.transform.Member) -> Make:
    """The paper's curriculum, before whatever else."""
    return lambda context: harmony.chain(curriculum.threshold(schedule.linear(*GAMMA, steps=context.steps)), *members)


def oracle(context: Context) -> harmony.Transform:
    """Weigh with the truth."""
    return harmony.Transform(lambda: (), lambda gram, state, *, ids, **_: (context.aligned[ids].to(gram.dtype), state))


def each_small_loss(context: Context) -> harmony.Transform:
    """Keep of each loss the half of its own pairs that it is small for."""
    rules = [curriculum.quantile(warm(context, SHARE), partial(score.small_loss, losses=[k])) for k in (0, 1)]

    def update(gram: Tensor, state: Any, **extras: Any) -> tuple[Tensor, Any]:
        found = [rule.update(gram, s, **extras) for rule, s in zip(rules, state, strict=True)]
        return torch.stack([weights[:, k] for k, (weights, _) in enumerate(found)], 1), tuple(s for _, s in found)

    return harmony.Transform(lambda: tuple(rule.init() for rule in rules), update)


def fit_mixture(context: Context) -> harmony.Transform:
    """Two components on the losses, fitted after every epoch from the end of the warm-up on."""
    epoch = max(context.clips // context.batch_size, 1)
    return mixture(context.clips, epoch, max(round(WARMUP * context.steps), epoch))


def cross_checked(share: float | None = None) -> Make:
    """The cross_check, with as long a warm-up as everybody."""
    return lambda context: curriculum.cross_check(
        round(WARMUP * context.steps), None if share is None else warm(context, share)
    )


def sides(objective: Objective, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
    """Similarities of all three pairs of modalities."""
    return {"sides": objective.sides(embeddings)}


def similarity(objective: Objective, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
    """Similarity of each clip's video and text."""
    return {"similarity": objective.sides(embeddings)[:, 1].diagonal()}


LOSS_AND_COSINE = score.combined(score.ranked(score.small_loss), score.ranked(score.agreement))
EITHER = score.negative(score.least(*(score.negative(score.ranked(s)) for s in (score.small_loss, score.agreement))))

RULES: dict[str, Rule] = {
    "baseline": Rule(always()),
    "oracle": Rule(oracle),
    # the paper, and variants of it
    "realign": Rule(always(realign.pcgrad), PARAMETERS),
    "curriculum": Rule(paper(), PARAMETERS),
    "realign + curriculum": Rule(paper(realign.pcgrad), PARAMETERS),
    "realign, groups of 8": Rule(always(realign.pcgrad), {**PARAMETERS, "group_size": 8}),
    "realign, layerwise": Rule(always(harmony.layerwise(realign.pcgrad)), {**PARAMETERS, "labels": layer_of}),
    "cosine half, anchor features": Rule(keep_half(score.agreement), ANCHOR),
    # other methods, at the video's representation
    "mgda": Rule(always(realign.mgda), FEATURES),
    "gradvac": Rule(always(realign.gradvac()), FEATURES),
    # gradients and losses together
    "loss + cosine half": Rule(keep_half(LOSS_AND_COSINE), ANCHOR),
    "loss or cosine half": Rule(keep_half(EITHER), ANCHOR),
    # of the literature on noisy correspondence
    "small loss half": Rule(keep_half(score.small_loss)),
    "small loss half, each": Rule(each_small_loss),
    "mixture": Rule(fit_mixture),
    "mixture, co-teaching": Rule(fit_mixture, networks=2),
    "rince": Rule(always(), robust=True),
    "similarity half": Rule(keep_half(score.similarity), extras=similarity),
    # ours
    "cross_check": Rule(cross_checked(), extras=sides),
    "cross_check half": Rule(cross_checked(SHARE), extras=sides),
}
