"""What makes up for the samples that a curriculum drops."""

from typing import Any

import torch
from torch import Tensor

from harmony.score import agreement
from harmony.transform import Member, State, Transform, chain


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
        counted = agreement(gram).isnan().logical_not()[:, None]
        total = torch.where(counted, weights, 0).sum(0)
        missing = counted.sum() / torch.where(total > 0, total, 1)
        factor = torch.where(total > 0, missing, 1).clamp(max=limit)
        return torch.where(counted, weights * factor.to(weights.dtype), weights), state

    return Transform(inner.init, update)
