"""Curricula: which samples to learn from. Each gives a factor in [0, 1] per sample, the same for all its losses.

They decide by a score, by default the agreement of a sample's gradients (see ``harmony.score``). A sample without a
score (one modality is missing) has the factor 1: it is never dropped, and counts in no quantile.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harmony import score as scores
from harmony.extras import needed
from harmony.memory import Memory, memory, recall, remember
from harmony.schedule import Schedule, as_schedule
from harmony.score import AnyScore, as_score
from harmony.transform import Member, State, Transform, chain


class RuleState(NamedTuple):
    """State of a curriculum: the number of updates so far, the state of its score, and a memory of its own."""

    step: Tensor
    score: State
    own: State = ()


def threshold(gamma: float | Schedule = 0.0, score: AnyScore = scores.agreement) -> Transform:
    """Keep the samples whose score is above ``gamma``; drop the others.

    The comparison is strict: at gamma = 0, orthogonal gradients are dropped. The gradient is not rescaled for the
    samples that are gone; see [renormalized][harmony.curriculum.renormalized].

    Args:
        gamma: A number (for the agreement a cosine in [-1, 1]), or a schedule. The paper raises it during training.
        score: What is compared.

    Returns:
        A transform whose weights are 1 where ``score_b > gamma(step)``, else 0; samplewise if the score is.

    Examples:
        >>> import torch, harmony
        >>> curriculum = harmony.curriculum.threshold(harmony.schedule.linear(-0.3, 0.0, steps=100))
        >>> gram = torch.tensor([[[1.0, -0.5], [-0.5, 1.0]], [[1.0, 0.5], [0.5, 1.0]]])
        >>> weights, state = curriculum.update(gram, curriculum.init())
        >>> weights
        tensor([[0., 0.],
                [1., 1.]])

    References:
        Wu et al., 2022 (arXiv:2211.02077): gradient-based curriculum learning.
    """
    schedule = as_schedule(gamma)
    return _rule(score, lambda values, step: values > schedule(step), samplewise=True)


def soft_threshold(
    gamma: float | Schedule = 0.0, temperature: float | Schedule = 0.1, score: AnyScore = scores.agreement
) -> Transform:
    """Fade samples out around ``gamma`` in place of cutting them off.

    Args:
        gamma: Where the factor is 1/2; a number or a schedule.
        temperature: Width of the way from 0 to 1, positive; a number or a schedule. Towards 0 it is
            [threshold][harmony.curriculum.threshold].
        score: What is compared.

    Returns:
        A transform with weights ``sigmoid((score_b - gamma) / temperature)``; samplewise if the score is.

    Raises:
        ValueError: A temperature that is not positive.

    Examples:
        >>> import torch, harmony
        >>> curriculum = harmony.curriculum.soft_threshold(0.0, temperature=0.25)
        >>> gram = torch.tensor([[[1.0, -0.5], [-0.5, 1.0]], [[1.0, 0.5], [0.5, 1.0]]])
        >>> curriculum.update(gram, curriculum.init())[0]
        tensor([[0.1192, 0.1192],
                [0.8808, 0.8808]])
    """
    if isinstance(temperature, int | float) and not temperature > 0:
        raise ValueError(f"temperature must be positive; got {temperature}.")
    center, width = as_schedule(gamma), as_schedule(temperature)

    def fade(values: Tensor, step: Tensor) -> Tensor:
        return ((values - center(step)) / width(step).clamp(min=torch.finfo(torch.float32).tiny)).sigmoid()

    return _rule(score, fade, samplewise=True)


def agreement_weight(power: float = 1.0, score: AnyScore = scores.agreement) -> Transform:
    """Weigh each sample by its agreement: ``((1 + cos) / 2) ** power``, from 0 for opposite gradients to 1.

    Args:
        power: How steep; at least 0. At 0 all samples count alike.
        score: A score in [-1, 1]; beyond, it counts as the nearer end.

    Returns:
        A transform; samplewise if the score is.

    Raises:
        ValueError: A negative power.

    Examples:
        >>> import torch, harmony
        >>> curriculum = harmony.curriculum.agreement_weight()
        >>> gram = torch.tensor([[[1.0, -0.5], [-0.5, 1.0]], [[1.0, 0.5], [0.5, 1.0]]])
        >>> curriculum.update(gram, curriculum.init())[0]
        tensor([[0.2500, 0.2500],
                [0.7500, 0.7500]])
    """
    if not power >= 0:
        raise ValueError(f"power must be at least 0; got {power}.")
    return _rule(score, lambda values, step: ((1 + values) / 2).clamp(0, 1) ** power, samplewise=True)


def quantile(share: float | Schedule, score: AnyScore = scores.agreement) -> Transform:
    """Keep a share of each batch, that with the largest scores.

    Args:
        share: Share of the samples with a score, in [0, 1]; a number or a schedule.
        score: What is compared.

    Returns:
        A transform whose weights are 1 for exactly ``round(share * n)`` of the n samples with a score (halves up), else
        0; of equal scores the first in the batch is kept. Not samplewise.

    Raises:
        ValueError: A share out of [0, 1].

    Examples:
        >>> import torch, harmony
        >>> curriculum = harmony.curriculum.quantile(0.5)
        >>> gram = torch.tensor([[[1.0, -0.5], [-0.5, 1.0]], [[1.0, 0.5], [0.5, 1.0]]])
        >>> curriculum.update(gram, curriculum.init())[0]
        tensor([[0., 0.],
                [1., 1.]])
    """
    schedule = _share(share)

    def keep(values: Tensor, step: Tensor) -> Tensor:
        number = (~values.isnan()).sum()
        return _place(values) < (schedule(step).double().clamp(0, 1) * number + 0.5).floor()

    return _rule(score, keep, samplewise=False)


def top_k(k: int | Schedule, score: AnyScore = scores.agreement) -> Transform:
    """Keep the k samples of each batch with the largest scores.

    Args:
        k: How many of the samples with a score, at least 0; a number or a schedule, which is rounded.
        score: What is compared.

    Returns:
        A transform whose weights are 1 for ``min(k, n)`` of the n samples with a score, else 0; of equal scores the
        first in the batch is kept. Not samplewise.

    Raises:
        ValueError: A negative number.

    Examples:
        >>> import torch, harmony
        >>> curriculum = harmony.curriculum.top_k(1, score=harmony.score.norm_ratio)
        >>> curriculum.update(torch.diag_embed(torch.tensor([[1.0, 4.0], [1.0, 1.0]])), curriculum.init())[0]
        tensor([[0., 0.],
                [1., 1.]])
    """
    if isinstance(k, int | float) and k < 0:
        raise ValueError(f"k must be at least 0; got {k}.")
    schedule = as_schedule(k)
    return _rule(score, lambda values, step: _place(values) < schedule(step).round(), samplewise=False)


class Level(NamedTuple):
    """A running estimate: the sum of the values seen, decayed, and that of their weights; 0-d tensors."""

    total: Tensor
    weight: Tensor


def running_quantile(share: float | Schedule, decay: float = 0.99, score: AnyScore = scores.agreement) -> Transform:
    """Keep what is above a running estimate of the score that a share of all samples exceeds.

    Where [quantile][harmony.curriculum.quantile] keeps the same share of a clean and of a noisy batch, this compares
    batches with one another, and small batches with more than themselves. The estimate is the moving average of the
    batches' quantiles; it lags behind a share that moves.

    Args:
        share: Share of the samples to keep, in [0, 1]; a number or a schedule.
        decay: Weight of the past in the estimate, in [0, 1).
        score: What is compared.

    Returns:
        A transform whose weights are 1 where the score is at least the estimate, else 0. Not samplewise.

    Raises:
        ValueError: A share out of [0, 1], or a decay out of [0, 1).

    Examples:
        >>> import torch, harmony
        >>> curriculum = harmony.curriculum.running_quantile(0.5, score=harmony.score.gradient_norm)
        >>> state = curriculum.init()
        >>> for norms in ([1.0, 2.0, 3.0], [3.0, 4.0, 5.0]):
        ...     gram = torch.diag_embed(torch.tensor(norms).square()[:, None].expand(3, 2) / 2)
        ...     weights, state = curriculum.update(gram, state)
        >>> weights[:, 0]  # the estimate went from 2 to a little more than the mean of 2 and 4
        tensor([0., 1., 1.])
    """
    schedule = _share(share)
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be at least 0 and below 1; got {decay}.")
    inner = as_score(score)

    def init() -> RuleState:
        return RuleState(torch.zeros((), dtype=torch.int64), inner.init(), Level(torch.zeros(()), torch.zeros(())))

    @torch.no_grad()
    def update(gram: Tensor, state: RuleState, **extras: Any) -> tuple[Tensor, RuleState]:
        values, after = inner.update(gram, state.score, **extras)
        seen = ~values.isnan()
        number = seen.sum()
        ordered = torch.where(seen, values, -torch.inf).sort(descending=True).values
        ordered = torch.cat([ordered, ordered.new_zeros(1)])  # an empty batch has no value to look up
        last = (schedule(state.step).double() * number).ceil().clamp(min=1).minimum(number.clamp(min=1)) - 1
        new = ordered.gather(0, last.long()[None])[0]
        any_ = (number > 0).to(values.dtype)
        total, weight = (x.to(values) for x in state.own)
        keep_past = torch.where(number > 0, decay, 1.0)
        total = keep_past * total + (1 - decay) * any_ * torch.where(number > 0, new, 0)
        weight = keep_past * weight + (1 - decay) * any_
        level = total / torch.where(weight > 0, weight, 1)
        kept = (values >= level) & (schedule(state.step) > 0).to(values.device)
        own = Level(total.float(), weight.float())
        return _factor(kept, values, gram), RuleState(state.step + 1, after, own)

    return Transform(init, update)


def hysteresis(
    low: float | Schedule, high: float | Schedule, score: AnyScore = scores.agreement, capacity: int = 2**20
) -> Transform:
    """Drop a sample whose score falls to ``low``, and take it back only when it rises above ``high``.

    A sample near one threshold would come and go at every step; here it stays as it is between the two.

    Args:
        low: What a sample that is kept, or new, must exceed; a number or a schedule.
        high: What a sample that was dropped must exceed; at least ``low``.
        score: What is compared.
        capacity: Samples that are remembered; see [ema][harmony.score.ema]. A forgotten one counts as new.

    Returns:
        A transform with weights 0 or 1. It needs ``ids`` (B,), integers, which a step takes. Not samplewise.

    Raises:
        ValueError: ``high`` below ``low``; in ``update``, no ids.

    Examples:
        >>> import torch, harmony
        >>> curriculum = harmony.curriculum.hysteresis(-0.2, 0.2, capacity=16)
        >>> state, ids, kept = curriculum.init(), torch.tensor([3]), []
        >>> for cosine in (0.1, -0.3, 0.1, 0.3, 0.1):
        ...     gram = torch.tensor([[[1.0, cosine], [cosine, 1.0]]])
        ...     weights, state = curriculum.update(gram, state, ids=ids)
        ...     kept.append(int(weights[0, 0]))
        >>> kept
        [1, 0, 0, 1, 1]
    """
    if isinstance(low, int | float) and isinstance(high, int | float) and high < low:
        raise ValueError(f"high must be at least low; got {high} and {low}.")
    lower, upper = as_schedule(low), as_schedule(high)
    inner = as_score(score)

    def init() -> RuleState:
        return RuleState(torch.zeros((), dtype=torch.int64), inner.init(), memory(capacity))

    @torch.no_grad()
    def update(gram: Tensor, state: RuleState, *, ids: Tensor | None = None, **extras: Any) -> tuple[Tensor, RuleState]:
        ids = needed("hysteresis", "ids", ids, gram.shape[:1], "ids=")
        values, after = inner.update(gram, state.score, ids=ids, **extras)
        own: Memory = state.own
        was_kept, known = recall(own, ids)
        dropped = known & (was_kept == 0)
        step = state.step
        kept = values > torch.where(dropped, upper(step), lower(step))
        own = remember(own, ids, kept.float(), ~values.isnan())
        return _factor(kept, values, gram), RuleState(state.step + 1, after, own)

    return Transform(init, update)


def renormalized(member: Member, limit: float = 10.0) -> Transform:
    """Make up for the samples that a curriculum drops, so that the step keeps its size.

    The weights of each loss are multiplied so that their mean is 1 over the samples that have an agreement; the others
    keep theirs. Wrap the curriculum alone: ``chain(renormalized(quantile(0.5)), pcgrad)``.

    Args:
        member: A transform, or a function ``gram -> weights``.
        limit: The most that weights are multiplied with, at least 1.

    Returns:
        A transform. Not samplewise. If everything is dropped, nothing is made up for.

    Raises:
        ValueError: A limit below 1.

    Examples:
        >>> import torch, harmony
        >>> curriculum = harmony.curriculum.renormalized(harmony.curriculum.threshold(0.0))
        >>> gram = torch.tensor([[[1.0, -0.5], [-0.5, 1.0]], [[1.0, 0.5], [0.5, 1.0]]])
        >>> curriculum.update(gram, curriculum.init())[0]
        tensor([[0., 0.],
                [2., 2.]])
    """
    if not limit >= 1:
        raise ValueError(f"limit must be at least 1; got {limit}.")
    inner = chain(member)
    if inner.layerwise:
        raise TypeError("renormalized takes members that weigh whole samples, not layerwise ones.")

    @torch.no_grad()
    def update(gram: Tensor, state: State, **extras: Any) -> tuple[Tensor, State]:
        weights, state = inner.update(gram, state, **extras)
        counted = scores.agreement(gram).isnan().logical_not()[:, None]
        total = torch.where(counted, weights, 0).sum(0)
        missing = counted.sum() / torch.where(total > 0, total, 1)
        factor = torch.where(total > 0, missing, 1).clamp(max=limit)
        return torch.where(counted, weights * factor.to(weights.dtype), weights), state

    return Transform(inner.init, update)


Decide = Callable[[Tensor, Tensor], Tensor]
"""Scores (B,) and the step -> factors (B,), or a mask of what is kept."""


def _rule(score: AnyScore, decide: Decide, *, samplewise: bool) -> Transform:
    """A curriculum that has no memory of its own."""
    inner = as_score(score)

    def init() -> RuleState:
        return RuleState(torch.zeros((), dtype=torch.int64), inner.init())

    @torch.no_grad()
    def update(gram: Tensor, state: RuleState, **extras: Any) -> tuple[Tensor, RuleState]:
        values, after = inner.update(gram, state.score, **extras)
        factor = decide(values, state.step)
        return _factor(factor, values, gram), RuleState(state.step + 1, after)

    return Transform(init, update, samplewise=samplewise and inner.samplewise)


def _factor(factor: Tensor, values: Tensor, gram: Tensor) -> Tensor:
    """Weights (B, K) of factors (B,): 1 where there is no score."""
    return torch.where(values.isnan(), 1, factor.to(gram.dtype))[:, None].expand(gram.shape[:2])


def _place(values: Tensor) -> Tensor:
    """Place of each score in the batch, 0 for the largest; samples without a score come last."""
    order = torch.where(values.isnan(), -torch.inf, values).sort(descending=True, stable=True).indices
    return torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=order.device))


def _share(share: float | Schedule) -> Schedule:
    if isinstance(share, int | float) and not 0 <= share <= 1:
        raise ValueError(f"a share is between 0 and 1; got {share}.")
    return as_schedule(share)
