"""Weights that do not depend on conflict: the baselines of every comparison."""

from typing import Any

import torch
from torch import Tensor

from harmony.cosines import check_blocks
from harmony.members import factory, samplewise
from harmony.numerics.counter import normal
from harmony.numerics.unit import unit_blocks
from harmony.transform import State, Transform, counting


@samplewise
def summed(gram: Tensor) -> Tensor:
    """Leave all gradients as they are: the ordinary gradient of the summed losses.

    Args:
        gram: Gram blocks (B, K, K).

    Returns:
        Weights (B, K), ones.

    Examples:
        >>> harmony.realign.summed(torch.eye(2)[None])
        tensor([[1., 1.]])
    """
    check_blocks(gram)
    return torch.ones(gram.shape[:2], dtype=gram.dtype, device=gram.device)


@samplewise
def mean(gram: Tensor) -> Tensor:
    """The gradient of the mean of the losses.

    Args:
        gram: Gram blocks (B, K, K).

    Returns:
        Weights (B, K), 1 / K.

    Examples:
        >>> harmony.realign.mean(torch.eye(2)[None])
        tensor([[0.5000, 0.5000]])
    """
    return summed(gram) / gram.shape[-1]


@samplewise
def normalized(gram: Tensor) -> Tensor:
    """Give every gradient of every sample length one.

    The update has no scale of the losses left: choose the learning rate accordingly. Members of a chain see the raw
    Gram, so ``chain(normalized, pcgrad)`` is not PCGrad of normalised gradients.

    Args:
        gram: Gram blocks (B, K, K).

    Returns:
        Weights (B, K), ``1 / |g_b^k|``.

    Examples:
        >>> harmony.realign.normalized(torch.tensor([[[4.0, 0.0], [0.0, 0.25]]]))
        tensor([[0.5000, 2.0000]])
    """
    blocks = unit_blocks(gram)
    return blocks.weights(1 / blocks.norm / blocks.scale)


@factory("transform")
def random(seed: int = 0) -> Transform:
    """Random loss weighting: weights drawn anew for every sample and step, a baseline that is hard to beat.

    Args:
        seed: The weights are a pure function of seed, step and place in the batch.

    Returns:
        A transform whose weights (B, K) are the softmax of standard normal numbers; they sum to 1. Not samplewise. Lin
        et al., 2022 (arXiv:2111.10603).

    Examples:
        >>> method = harmony.realign.random(seed=1)
        >>> weights, state = method.update(torch.eye(2).expand(3, 2, 2), method.init())
        >>> weights.shape, weights.sum(1)
        (torch.Size([3, 2]), tensor([1., 1., 1.]))
    """

    def update(gram: Tensor, step: Tensor, memory: State, **extras: Any) -> tuple[Tensor, State]:
        check_blocks(gram)
        drawn = normal(seed, step, gram.shape[0], gram.shape[1], gram.device)
        return drawn.softmax(-1).to(gram.dtype), memory

    return counting(update)
