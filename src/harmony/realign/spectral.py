"""Methods on the spectrum of the Gram: Aligned-MTL and ConFIG."""

import torch
from torch import Tensor

from harmony.numerics.eigen import eigh, pseudo_inverse_times, significant
from harmony.numerics.unit import times, unit_blocks
from harmony.realign.preference import Preference, as_preference
from harmony.transform import samplewise


@samplewise
def aligned_mtl(gram: Tensor, preference: Preference = None) -> Tensor:
    """Replace the gradients by the nearest orthogonal ones of equal length, and add them up.

    All of them get the length of the least singular value of the matrix of gradients: its condition number becomes 1.

    Args:
        gram: Gram blocks (B, K, K).
        preference: What each aligned gradient is multiplied with (K,), at least 0; default ones. The paper's mean is
            1 / K.

    Returns:
        Weights (B, K). Singular values below the rounding error of the Gram's dtype count as zero.

    Raises:
        ValueError: A preference that does not fit.

    Examples:
        >>> import torch, harmony
        >>> harmony.realign.aligned_mtl(torch.tensor([[[4.0, 0.0], [0.0, 1.0]]]))
        tensor([[0.5000, 1.0000]])

    References:
        Senushkin et al., Independent Component Alignment for Multi-Task Learning, 2023 (arXiv:2305.19000), equation 14.
    """
    blocks = unit_blocks(gram)
    wanted = torch.where(blocks.active, as_preference(preference, blocks.cosine), 0)
    length = torch.where(blocks.active, blocks.norm, 0)
    values, vectors = eigh(blocks.cosine * length[:, :, None] * length[:, None, :])
    kept = significant(values, torch.finfo(gram.dtype).eps)
    safe = torch.where(kept, values, torch.inf)
    balance = torch.where(kept, (safe.amin(-1, keepdim=True) / safe).sqrt(), 0)
    along = (vectors * wanted[..., None]).sum(-2) * balance
    return blocks.weights(times(vectors, along), as_preference(preference, blocks.cosine))


@samplewise
def config(gram: Tensor, preference: Preference = None) -> Tensor:
    """Conflict-free: the direction with equal cosines to all gradients, as long as their inner products with it.

    Args:
        gram: Gram blocks (B, K, K).
        preference: What the cosines are proportional to (K,), at least 0; default ones.

    Returns:
        Weights (B, K). For two losses the unit bisector, scaled: ``(|g_1| + |g_2|) / (2 |g_k|)``. Linearly dependent
        gradients are dealt with by the pseudo-inverse; weights are zero where no direction fits.

    Raises:
        ValueError: A preference that does not fit.

    Examples:
        >>> import torch, harmony
        >>> harmony.realign.config(torch.tensor([[[1.0, -0.5], [-0.5, 9.0]]]))
        tensor([[2.0000, 0.6667]])

    References:
        Liu et al., ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks, 2024 (arXiv:2408.11104),
        equations 2 and 3.
    """
    blocks = unit_blocks(gram)
    length = torch.where(blocks.active, blocks.norm, 0)
    if preference is None and gram.shape[-1] == 2:
        both = blocks.active.all(-1, keepdim=True)
        return blocks.weights(torch.where(both, length.sum(-1, keepdim=True) / (2 * blocks.norm), 1))
    wanted = torch.where(blocks.active, as_preference(preference, blocks.cosine), 0)
    u = pseudo_inverse_times(blocks.cosine, wanted, torch.finfo(gram.dtype).eps)
    towards = times(blocks.cosine, u)
    squared = (u * towards).sum(-1, keepdim=True)  # |direction|^2
    along = (length * towards).sum(-1, keepdim=True)
    scale = torch.where(squared > 0, along / torch.where(squared > 0, squared, 1), 0)
    return blocks.weights(scale * u / blocks.norm, as_preference(preference, blocks.cosine))
