"""Curricula that compare a score with a number."""

from typing import Any

import torch
from torch import Tensor

from harmony.arguments import check_range, require_extra
from harmony.curriculum.rule import remembering_rule, rule
from harmony.history import History, empty_history, recall, remember
from harmony.members import factory
from harmony.schedule import Schedule, as_schedule
from harmony.score import AnyScore, agreement
from harmony.transform import Transform


@factory("transform")
def threshold(gamma: float | Schedule = 0.0, score: AnyScore = agreement) -> Transform:
    """Keep the samples whose score is above ``gamma``; drop the others.

    At gamma = 0, orthogonal gradients are dropped. The gradient is not rescaled for the dropped samples; see
    [renormalized][harmony.curriculum.renormalized]. Wu et al., 2022 (arXiv:2211.02077).

    Args:
        gamma: A number (for the agreement a cosine in [-1, 1]), or a schedule. The paper raises it during training.
        score: The score of the samples.

    Returns:
        A transform with weights 1 where ``score_b > gamma(step)``, else 0; samplewise if the score is.

    Examples:
        >>> curriculum = harmony.curriculum.threshold(harmony.schedule.linear(-0.3, 0.0, steps=100))
        >>> gram = torch.tensor([[[1.0, -0.5], [-0.5, 1.0]], [[1.0, 0.5], [0.5, 1.0]]])
        >>> weights, state = curriculum.update(gram, curriculum.init())
        >>> weights[:, 0]
        tensor([0., 1.])
    """
    schedule = as_schedule(gamma)
    return rule(score, lambda values, step: values > schedule(step), samplewise=True)


@factory("transform")
def soft_threshold(
    gamma: float | Schedule = 0.0, temperature: float | Schedule = 0.1, score: AnyScore = agreement
) -> Transform:
    """Fade samples out around ``gamma``.

    Args:
        gamma: The score with the factor 1/2; a number or a schedule.
        temperature: Width of the way from 0 to 1, positive; a number or a schedule. Towards 0 it is ``threshold``.
        score: The score of the samples.

    Returns:
        A transform with weights ``sigmoid((score_b - gamma) / temperature)``; samplewise if the score is.

    Examples:
        >>> curriculum = harmony.curriculum.soft_threshold(0.0, temperature=0.25)
        >>> gram = torch.tensor([[[1.0, -0.5], [-0.5, 1.0]], [[1.0, 0.5], [0.5, 1.0]]])
        >>> curriculum.update(gram, curriculum.init())[0][:, 0]
        tensor([0.1192, 0.8808])
    """
    check_range("temperature", temperature, above=0)
    center, width = as_schedule(gamma), as_schedule(temperature)

    def fade(values: Tensor, step: Tensor) -> Tensor:
        return ((values - center(step)) / width(step).clamp(min=torch.finfo(torch.float32).tiny)).sigmoid()

    return rule(score, fade, samplewise=True)


@factory("transform")
def agreement_weight(power: float = 1.0, score: AnyScore = agreement) -> Transform:
    """Weigh each sample by its agreement: ``((1 + cos) / 2) ** power``, from 0 for opposite gradients to 1.

    Args:
        power: How steep; at least 0. At 0 all samples count alike.
        score: A score in [-1, 1]; values beyond count as the nearer end.

    Returns:
        A transform; samplewise if the score is.

    Examples:
        >>> curriculum = harmony.curriculum.agreement_weight()
        >>> gram = torch.tensor([[[1.0, -0.5], [-0.5, 1.0]], [[1.0, 0.5], [0.5, 1.0]]])
        >>> curriculum.update(gram, curriculum.init())[0][:, 0]
        tensor([0.2500, 0.7500])
    """
    check_range("power", power, at_least=0)
    return rule(score, lambda values, step: ((1 + values) / 2).clamp(0, 1) ** power, samplewise=True)


@factory("transform")
def hysteresis(
    low: float | Schedule, high: float | Schedule, score: AnyScore = agreement, capacity: int = 2**20
) -> Transform:
    """Drop a sample whose score falls to ``low``, and take it back only when it rises above ``high``.

    With one threshold, a sample near it would come and go at every step; here it stays as it is between the two.

    Args:
        low: The score that kept and new samples must exceed; a number or a schedule.
        high: The score that dropped samples must exceed; at least ``low``.
        score: The score of the samples.
        capacity: Samples that are remembered; see [ema][harmony.score.ema]. A forgotten one counts as new.

    Returns:
        A transform with weights 0 or 1. It needs ``ids`` (B,), integers, from a step with ``ids=``. Not samplewise.

    Examples:
        >>> curriculum = harmony.curriculum.hysteresis(-0.2, 0.2, capacity=16)
        >>> state, ids, kept = curriculum.init(), torch.tensor([3]), []
        >>> for cosine in (0.1, -0.3, 0.1, 0.3, 0.1):
        ...     gram = torch.tensor([[[1.0, cosine], [cosine, 1.0]]])
        ...     weights, state = curriculum.update(gram, state, ids=ids)
        ...     kept.append(int(weights[0, 0]))
        >>> kept
        [1, 0, 0, 1, 1]
    """
    if isinstance(low, int | float):
        check_range("high", high, at_least=low)
    lower, upper = as_schedule(low), as_schedule(high)

    def decide(
        values: Tensor, step: Tensor, history: History, *, ids: Tensor | None = None, **extras: Any
    ) -> tuple[Tensor, History]:
        ids = require_extra("hysteresis", "ids", ids, values.shape, "ids=")
        was_kept, known = recall(history, ids)
        dropped = known & (was_kept == 0)
        kept = values > torch.where(dropped, upper(step), lower(step))
        return kept, remember(history, ids, kept.float(), ~values.isnan())

    return remembering_rule(score, decide, lambda: empty_history(capacity))
