"""Curricula that compare samples with one another, and keep a share or a number of the best."""

from typing import Any

import torch
from torch import Tensor

from harmony.arguments import check_range
from harmony.curriculum.rule import RunningMean, remembering_rule, rule
from harmony.members import factory
from harmony.numerics.batch import places
from harmony.schedule import Schedule, as_schedule
from harmony.score import AnyScore, agreement
from harmony.transform import Transform


@factory("transform")
def quantile(share: float | Schedule, score: AnyScore = agreement) -> Transform:
    """Keep a share of each batch: the samples with the largest scores.

    Args:
        share: Share of the samples with a score, in [0, 1]; a number or a schedule.
        score: The score of the samples; of equal ones the first in the batch is kept.

    Returns:
        A transform with weights 1 for ``round(share * n)`` of the n samples (halves up), else 0. Not samplewise.

    Examples:
        >>> curriculum = harmony.curriculum.quantile(0.5)
        >>> gram = torch.tensor([[[1.0, -0.5], [-0.5, 1.0]], [[1.0, 0.5], [0.5, 1.0]]])
        >>> curriculum.update(gram, curriculum.init())[0][:, 0]
        tensor([0., 1.])
    """
    check_range("share", share, at_least=0, at_most=1)
    schedule = as_schedule(share)

    def keep(values: Tensor, step: Tensor) -> Tensor:
        number = (~values.isnan()).sum()
        return places(values) < (schedule(step).double().clamp(0, 1) * number + 0.5).floor()

    return rule(score, keep)


@factory("transform")
def top_k(k: int | Schedule, score: AnyScore = agreement) -> Transform:
    """Keep the k samples of each batch with the largest scores.

    Args:
        k: How many of the samples with a score, at least 0; a number or a schedule, which is rounded.
        score: The score of the samples; of equal ones the first in the batch is kept.

    Returns:
        A transform with weights 1 for ``min(k, n)`` of the n samples, else 0. Not samplewise.

    Examples:
        >>> curriculum = harmony.curriculum.top_k(1, score=harmony.score.norm_ratio)
        >>> curriculum.update(torch.diag_embed(torch.tensor([[1.0, 4.0], [1.0, 1.0]])), curriculum.init())[0][:, 0]
        tensor([0., 1.])
    """
    check_range("k", k, at_least=0)
    schedule = as_schedule(k)
    return rule(score, lambda values, step: places(values) < schedule(step).round())


@factory("transform")
def running_quantile(share: float | Schedule, decay: float = 0.99, score: AnyScore = agreement) -> Transform:
    """Keep the samples above a running estimate of the score that a share of all samples exceeds.

    [quantile][harmony.curriculum.quantile] keeps the same share of clean and of noisy batches; this compares batches
    with one another. The estimate is the moving average of the batches' quantiles, and lags behind a share that moves.
    In batches of n, shares closer to 0 or 1 than 1 / (n + 1) use the extreme of each batch. A share of 0 keeps nothing,
    a share of 1 everything.

    Args:
        share: Share of the samples to keep, in [0, 1]; a number or a schedule.
        decay: Weight of the past in the estimate, in [0, 1).
        score: The score of the samples.

    Returns:
        A transform with weights 1 where the score is at least the estimate, else 0. Not samplewise.

    Examples:
        >>> curriculum = harmony.curriculum.running_quantile(0.5, score=harmony.score.gradient_norm)
        >>> state = curriculum.init()
        >>> for norms in ([1.0, 2.0, 3.0], [3.0, 4.0, 5.0]):
        ...     gram = torch.diag_embed(torch.tensor(norms).square()[:, None].expand(3, 2) / 2)
        ...     weights, state = curriculum.update(gram, state)
        >>> weights[:, 0]  # the estimate went from 2 to a little more than the mean of 2 and 4
        tensor([0., 1., 1.])
    """
    check_range("share", share, at_least=0, at_most=1)
    check_range("decay", decay, at_least=0, below=1)
    schedule = as_schedule(share)

    def decide(values: Tensor, step: Tensor, estimate: RunningMean, **extras: Any) -> tuple[Tensor, RunningMean]:
        kept_share = schedule(step)
        estimate = estimate.include(_exceeded(values, kept_share), decay, (~values.isnan()).any())
        kept = ((values >= estimate.mean) | (kept_share >= 1)) & (kept_share > 0)
        return kept, RunningMean(estimate.total.float(), estimate.weight.float())

    return remembering_rule(score, decide, lambda: RunningMean(torch.zeros(()), torch.zeros(())))


def _exceeded(values: Tensor, share: Tensor) -> Tensor:
    """The value that a share of the values exceeds, those without a score left out; 0 without values."""
    number = (~values.isnan()).sum()
    ordered = torch.where(values.isnan(), -torch.inf, values).sort(descending=True).values
    ordered = torch.cat([ordered, ordered.new_zeros(1)])  # an empty batch has no value to look up
    # The k-th of n values exceeds a share k / (n + 1) of all values, on average: interpolate between two of them.
    place = (share * (number + 1)).clamp(min=1).minimum(number.clamp(min=1)) - 1
    above, below = (ordered.gather(0, p.long()[None])[0] for p in (place.floor(), place.ceil()))
    return torch.lerp(above, below, place.frac().to(values.dtype))
