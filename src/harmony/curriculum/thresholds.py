"""Curricula that compare a score with a number."""

import torch
from torch import Tensor

from harmony.curriculum.rule import rule
from harmony.members import factory
from harmony.ranges import check_range
from harmony.schedule import Schedule, as_schedule
from harmony.score import AnyScore, agreement
from harmony.transform import Transform


@factory("transform")
def threshold(gamma: float | Schedule = 0.0, score: AnyScore = agreement) -> Transform:
    """Keep the samples whose score is above ``gamma``; drop the others.

    The comparison is strict: at gamma = 0, orthogonal gradients are dropped. The gradient is not rescaled for the
    dropped samples; see [renormalized][harmony.curriculum.renormalized].

    Args:
        gamma: A number (for the agreement a cosine in [-1, 1]), or a schedule. The paper raises it during training.
        score: The score of the samples.

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
    return rule(score, lambda values, step: values > schedule(step), samplewise=True)


@factory("transform")
def soft_threshold(
    gamma: float | Schedule = 0.0, temperature: float | Schedule = 0.1, score: AnyScore = agreement
) -> Transform:
    """Fade samples out around ``gamma``.

    Args:
        gamma: The score with the factor 1/2; a number or a schedule.
        temperature: Width of the way from 0 to 1, positive; a number or a schedule. Towards 0 it is
            [threshold][harmony.curriculum.threshold].
        score: The score of the samples.

    Returns:
        A transform with weights ``sigmoid((score_b - gamma) / temperature)``; samplewise if the score is.

    Examples:
        >>> import torch, harmony
        >>> curriculum = harmony.curriculum.soft_threshold(0.0, temperature=0.25)
        >>> gram = torch.tensor([[[1.0, -0.5], [-0.5, 1.0]], [[1.0, 0.5], [0.5, 1.0]]])
        >>> curriculum.update(gram, curriculum.init())[0]
        tensor([[0.1192, 0.1192],
                [0.8808, 0.8808]])
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
        >>> import torch, harmony
        >>> curriculum = harmony.curriculum.agreement_weight()
        >>> gram = torch.tensor([[[1.0, -0.5], [-0.5, 1.0]], [[1.0, 0.5], [0.5, 1.0]]])
        >>> curriculum.update(gram, curriculum.init())[0]
        tensor([[0.2500, 0.2500],
                [0.7500, 0.7500]])
    """
    check_range("power", power, at_least=0)
    return rule(score, lambda values, step: ((1 + values) / 2).clamp(0, 1) ** power, samplewise=True)
