"""Methods on the spectrum of the Gram: Aligned-MTL and ConFIG."""

import torch
from torch import Tensor

from harmony.members import samplewise
from harmony.numerics.eigen import eigh, pseudo_inverse_times, significant
from harmony.numerics.unit import times
from harmony.realign.preference import Preference, preferred


@samplewise
def aligned_mtl(gram: Tensor, preference: Preference = None) -> Tensor:
    """Replace the gradients by the nearest orthogonal ones of equal length, and add them up.

    Their length is the least singular value of the matrix of gradients, whose condition number becomes 1. Senushkin
    et al., 2023 (arXiv:2305.19000), equation 14.

    Args:
        gram: Gram blocks (B, K, K).
        preference: Factors of the aligned gradients (K,), at least 0; default ones. The mean of the paper is 1 / K.

    Returns:
        Weights (B, K). Singular values below the rounding error of the Gram's dtype count as zero.

    Examples:
        >>> harmony.realign.aligned_mtl(torch.tensor([[[4.0, 0.0], [0.0, 1.0]]]))
        tensor([[0.5000, 1.0000]])
    """
    blocks, wanted = preferred(gram, preference)
    length = blocks.length
    values, vectors = eigh(blocks.cosine * length[:, :, None] * length[:, None, :])
    kept = significant(values, blocks.precision)
    safe = torch.where(kept, values, torch.inf)
    balance = torch.where(kept, (safe.amin(-1, keepdim=True) / safe).sqrt(), 0)
    along = (vectors * torch.where(blocks.active, wanted, 0)[..., None]).sum(-2) * balance
    return blocks.weights(times(vectors, along), wanted)


@samplewise
def config(gram: Tensor, preference: Preference = None) -> Tensor:
    """Conflict-free: the direction with equal cosines to all gradients, as long as their inner products with it.

    Args:
        gram: Gram blocks (B, K, K).
        preference: Ratios of the cosines (K,), at least 0; default ones.

    Returns:
        Weights (B, K). For two losses the unit bisector, scaled: ``(|g_1| + |g_2|) / (2 |g_k|)``. The pseudo-inverse
        takes care of linearly dependent gradients; weights are zero where no direction fits. Liu et al., 2024
        (arXiv:2408.11104), equations 2 and 3.

    Examples:
        >>> harmony.realign.config(torch.tensor([[[1.0, -0.5], [-0.5, 9.0]]]))
        tensor([[2.0000, 0.6667]])
    """
    blocks, wanted = preferred(gram, preference)
    if preference is None and gram.shape[-1] == 2:
        both = blocks.active.all(-1, keepdim=True)
        return blocks.weights(torch.where(both, blocks.length.sum(-1, keepdim=True) / (2 * blocks.norm), 1))
    u = pseudo_inverse_times(blocks.cosine, torch.where(blocks.active, wanted, 0), blocks.precision)
    products = times(blocks.cosine, u)
    squared = (u * products).sum(-1, keepdim=True)  # |direction|^2
    along = (blocks.length * products).sum(-1, keepdim=True)
    scale = torch.where(squared > 0, along / torch.where(squared > 0, squared, 1), 0)
    return blocks.weights(scale * u / blocks.norm, wanted)
