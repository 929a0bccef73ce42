"""Scores of the Gram alone: cosines and norms."""

import torch
from torch import Tensor

from harmony.cosines import cosine
from harmony.members import samplewise
from harmony.numerics.unit import unit_blocks
from harmony.score.base import where_defined


@samplewise
def pair_cosine(gram: Tensor, k: int = 0, l: int = 1) -> Tensor:
    """The cosine of one pair of gradients.

    Args:
        gram: Gram blocks (B, K, K).
        k: One loss.
        l: The other.

    Returns:
        Cosines (B,) in [-1, 1]; NaN where one of the two gradients is zero.

    Examples:
        >>> import torch, harmony
        >>> from functools import partial
        >>> last_two = partial(harmony.score.pair_cosine, k=1, l=2)
        >>> last_two(torch.tensor([[[1.0, 0.0, 0.0], [0.0, 4.0, 3.0], [0.0, 3.0, 9.0]]]))
        tensor([0.5000])
    """
    squared = torch.stack([gram[:, k, k], gram[:, l, l]], 1)
    both = ((squared > 0) & squared.isfinite()).all(1)
    return torch.where(both, cosine(gram)[:, k, l], torch.nan)


@samplewise
def norm_ratio(gram: Tensor) -> Tensor:
    """How equal the lengths of a sample's gradients are.

    Args:
        gram: Gram blocks (B, K, K).

    Returns:
        The least norm over the largest (B,), of the gradients that are not zero; in (0, 1].

    Examples:
        >>> import torch, harmony
        >>> harmony.score.norm_ratio(torch.tensor([[[4.0, 0.0], [0.0, 16.0]]]))
        tensor([0.5000])
    """
    blocks = unit_blocks(gram)
    return where_defined(torch.where(blocks.active, blocks.norm, 1).amin(-1).to(gram.dtype), gram)


@samplewise
def gradient_norm(gram: Tensor) -> Tensor:
    """Length of the gradient of a sample's summed losses. ``negative(gradient_norm)`` prefers the small ones.

    Args:
        gram: Gram blocks (B, K, K).

    Returns:
        ``|sum_k g_b^k|`` (B,).

    Examples:
        >>> import torch, harmony
        >>> harmony.score.gradient_norm(torch.tensor([[[9.0, 0.0], [0.0, 16.0]]]))
        tensor([5.])
    """
    return where_defined(gram.sum((1, 2)).clamp(min=0).sqrt(), gram, pair=False)
