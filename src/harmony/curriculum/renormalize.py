"""A step that keeps its size while a curriculum drops samples."""

from typing import Any

import torch
from torch import Tensor

from harmony.arguments import check_range
from harmony.cosines import defined
from harmony.members import factory
from harmony.transform import Member, State, Transform, chain


@factory("transform")
def renormalized(member: Member, limit: float = 10.0) -> Transform:
    """Make up for the samples that a curriculum drops, so that the step keeps its size.

    The weights of each loss are scaled to a mean of 1 over the samples that have an agreement; the others keep theirs.
    Wrap the curriculum alone: ``chain(renormalized(quantile(0.5)), pcgrad)``.

    Args:
        member: A transform, or a function ``gram -> weights``.
        limit: The largest scale, at least 1.

    Returns:
        A transform. Not samplewise. Where all samples are dropped, the weights stay zero.

    Examples:
        >>> curriculum = harmony.curriculum.renormalized(harmony.curriculum.threshold(0.0))
        >>> gram = torch.tensor([[[1.0, -0.5], [-0.5, 1.0]], [[1.0, 0.5], [0.5, 1.0]]])
        >>> curriculum.update(gram, curriculum.init())[0][:, 0]
        tensor([0., 2.])
    """
    check_range("limit", limit, at_least=1)
    inner = chain(member)
    if inner.layerwise:
        raise TypeError("renormalized takes members that weigh whole samples, not layerwise ones.")

    @torch.no_grad()
    def update(gram: Tensor, state: State, **extras: Any) -> tuple[Tensor, State]:
        weights, state = inner.update(gram, state, **extras)
        counted = defined(gram)[:, None]
        total = torch.where(counted, weights, 0).sum(0)
        scale = torch.where(total > 0, counted.sum() / torch.where(total > 0, total, 1), 1).clamp(max=limit)
        return torch.where(counted, weights * scale.to(weights.dtype), weights), state

    return Transform(inner.init, update)
