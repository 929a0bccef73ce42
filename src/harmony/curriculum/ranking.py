"""Curricula that keep a share, or a number, of the best: they compare samples with one another."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from harmony.checkpoint import loadable
from harmony.curriculum.rule import RuleState, as_weights, rule
from harmony.schedule import Schedule, as_schedule
from harmony.score import AnyScore, agreement, as_score
from harmony.transform import Transform


def quantile(share: float | Schedule, score: AnyScore = agreement) -> Transform:
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
        return place(values) < (schedule(step).double().clamp(0, 1) * number + 0.5).floor()

    return rule(score, keep, samplewise=False)


def top_k(k: int | Schedule, score: AnyScore = agreement) -> Transform:
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
    return rule(score, lambda values, step: place(values) < schedule(step).round(), samplewise=False)


@loadable
class Level(NamedTuple):
    """A running estimate: the sum of the values seen, decayed, and that of their weights; 0-d tensors."""

    total: Tensor
    weight: Tensor


def running_quantile(share: float | Schedule, decay: float = 0.99, score: AnyScore = agreement) -> Transform:
    """Keep what is above a running estimate of the score that a share of all samples exceeds.

    Where [quantile][harmony.curriculum.quantile] keeps the same share of a clean and of a noisy batch, this compares
    batches with one another, and small batches with more than themselves. The estimate is the moving average of the
    batches' quantiles; it lags behind a share that moves. A share closer to 0 or 1 than 1 / (n + 1), in batches of n,
    is out of its sight: the extreme of each batch stands for it. At 0 nothing and at 1 everything is kept.

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
        return RuleState(
            torch.zeros((), dtype=torch.int64, device="cpu"), inner.init(), Level(torch.zeros(()), torch.zeros(()))
        )

    @torch.no_grad()
    def update(gram: Tensor, state: RuleState, **extras: Any) -> tuple[Tensor, RuleState]:
        values, after = inner.update(gram, state.score, **extras)
        seen = ~values.isnan()
        number = seen.sum()
        ordered = torch.where(seen, values, -torch.inf).sort(descending=True).values
        ordered = torch.cat([ordered, ordered.new_zeros(1)])  # an empty batch has no value to look up
        kept_share = schedule(state.step)
        # The k-th of n values exceeds a share k / (n + 1) of all values, on average: interpolate between two of them.
        place = (kept_share * (number + 1)).clamp(min=1).minimum(number.clamp(min=1)) - 1
        above, below = (ordered.gather(0, p.long()[None])[0] for p in (place.floor(), place.ceil()))
        new = torch.lerp(above, below, place.frac().to(values.dtype))
        any_ = number > 0
        total, weight = (x.to(values) for x in state.own)
        total = torch.where(any_, decay * total + (1 - decay) * new, total)
        weight = torch.where(any_, decay * weight + (1 - decay), weight)
        level = total / torch.where(weight > 0, weight, 1)
        kept = ((values >= level) | (kept_share >= 1)) & (kept_share > 0)
        own = Level(total.float(), weight.float())
        return as_weights(kept, values, gram), RuleState(state.step + 1, after, own)

    return Transform(init, update)


def place(values: Tensor) -> Tensor:
    """Place of each score in the batch, 0 for the largest; samples without a score come last."""
    order = torch.where(values.isnan(), -torch.inf, values).sort(descending=True, stable=True).indices
    return torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=order.device))


def _share(share: float | Schedule) -> Schedule:
    if isinstance(share, int | float) and not 0 <= share <= 1:
        raise ValueError(f"a share is between 0 and 1; got {share}.")
    return as_schedule(share)
