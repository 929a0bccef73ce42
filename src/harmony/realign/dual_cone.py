"""Projection on the dual cone: the nearest update that no loss objects to. UPGrad and DualProj."""

import torch
from torch import Tensor

from harmony.numerics.complementarity import nonnegative_minimum
from harmony.numerics.unit import UnitBlocks, times, unit_blocks
from harmony.realign.preference import Preference, as_preference
from harmony.transform import samplewise


@samplewise
def upgrad(gram: Tensor, preference: Preference = None) -> Tensor:
    """Project each gradient on the cone of updates that conflict with no gradient, and add them up.

    Unlike the pairwise projections of PCGrad, the result conflicts with none of the gradients for any number of losses.
    For two losses it is the same as [pcgrad][harmony.realign.pcgrad].

    Args:
        gram: Gram blocks (B, K, K).
        preference: What each gradient is multiplied with (K,), at least 0; default ones. The paper's mean is 1 / K.

    Returns:
        Weights (B, K). For two losses a closed form; for more, exact for the Gram with the rounding error of its dtype
        added to the diagonal of its cosines.

    Raises:
        ValueError: A preference that does not fit.

    Examples:
        >>> import torch, harmony
        >>> harmony.realign.upgrad(torch.tensor([[[1.0, -0.5], [-0.5, 1.0]], [[1.0, 0.5], [0.5, 1.0]]]))
        tensor([[1.5000, 1.5000],
                [1.0000, 1.0000]])

    References:
        Quinton and Rey, Jacobian Descent for Multi-Objective Optimization, 2024 (arXiv:2406.16232), section 3.
    """
    blocks = unit_blocks(gram)
    wanted = as_preference(preference, blocks.cosine)
    own = torch.where(blocks.active, wanted * blocks.norm, 0)
    if own.shape[-1] == 2:
        added = (-blocks.cosine[:, 0, 1, None]).clamp(min=0) * own.flip(-1)
    else:
        unit = _conflict_free(blocks, blocks.cosine)  # (B, K, K), what is added to each unit gradient
        added = (own[..., None] * unit).sum(1)
    return blocks.weights(wanted + added / blocks.norm, wanted)


@samplewise
def dualproj(gram: Tensor, preference: Preference = None) -> Tensor:
    """Project the sum of the gradients on the cone of updates that conflict with no gradient.

    Args:
        gram: Gram blocks (B, K, K).
        preference: What each gradient is multiplied with (K,), at least 0; default ones. The papers' mean is 1 / K.

    Returns:
        Weights (B, K), with the accuracy of [upgrad][harmony.realign.upgrad].

    Raises:
        ValueError: A preference that does not fit.

    Examples:
        >>> import torch, harmony
        >>> harmony.realign.dualproj(torch.tensor([[[4.0, -2.0], [-2.0, 1.5]]]))  # the sum opposes the second alone
        tensor([[1.0000, 1.3333]])

    References:
        Lopez-Paz and Ranzato, Gradient Episodic Memory for Continual Learning, 2017 (arXiv:1706.08840), equations 8 to
        11; Quinton and Rey, 2024 (arXiv:2406.16232).
    """
    blocks = unit_blocks(gram)
    wanted = as_preference(preference, blocks.cosine)
    own = torch.where(blocks.active, wanted * blocks.norm, 0)
    towards = times(blocks.cosine, own)  # <sum, unit g_k>
    added = (-towards).clamp(min=0) if own.shape[-1] == 2 else _conflict_free(blocks, towards[:, None])[:, 0]
    return blocks.weights(wanted + added / blocks.norm, wanted)


def _conflict_free(blocks: UnitBlocks, towards: Tensor) -> Tensor:
    """What to add to n vectors so that no gradient objects.

    Args:
        blocks: The gradients.
        towards: Inner products (B, n, K) of the vectors with the unit gradients.

    Returns:
        Coefficients (B, n, K) of the unit gradients, at least 0.
    """
    b, n, k = towards.shape
    matrix = blocks.ridged[:, None].expand(b, n, k, k)
    found = nonnegative_minimum(matrix.reshape(b * n, k, k), -towards.reshape(b * n, k), blocks.ridge / 2)
    return found.view(b, n, k)
