"""Curricula: which samples to learn from, by the agreement of their gradients."""

from typing import Any

from torch import Tensor

from harmony.cosines import agreement, defined
from harmony.schedule import Schedule, as_schedule
from harmony.transform import StepState, Transform, first_step


def threshold(gamma: float | Schedule = 0.0) -> Transform:
    """Keep the samples whose gradients agree by more than ``gamma``; drop the others.

    The comparison is strict: at gamma = 0, orthogonal gradients are dropped. A sample whose agreement is undefined (one
    modality is missing) is never dropped. The gradient is not rescaled for the samples that are gone.

    Args:
        gamma: Cosine in [-1, 1], or a schedule of it. The paper raises it during training.

    Returns:
        A samplewise transform whose weights are 1 where ``cos_b > gamma(step)``, else 0.

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

    def update(gram: Tensor, state: StepState, **extras: Any) -> tuple[Tensor, StepState]:
        keep = (agreement(gram) > schedule(state.step)) | ~defined(gram)
        return keep.to(gram.dtype)[:, None].expand(gram.shape[:2]), state.next()

    return Transform(first_step, update, samplewise=True)
