"""Agreement of a sample's gradients: cosines read from Gram blocks."""

import torch
from torch import Tensor


def cosine(gram: Tensor) -> Tensor:
    """Cosine between each pair of gradients of each sample.

    Args:
        gram: Gram blocks (B, K, K).

    Returns:
        Cosines (B, K, K) in [-1, 1]; 0 wherever one of the two gradients is zero.

    Examples:
        >>> import torch, harmony
        >>> harmony.cosine(torch.tensor([[[4.0, -3.0], [-3.0, 9.0]]]))
        tensor([[[ 1.0000, -0.5000],
                 [-0.5000,  1.0000]]])
    """
    check_blocks(gram)
    norm = _norms(gram)
    norm = torch.where(norm > 0, norm, 1)
    # Two divisions: the product of two norms may leave the range of the dtype where each of them does not.
    return (gram / norm[..., :, None] / norm[..., None, :]).clamp(-1, 1)


def agreement(gram: Tensor) -> Tensor:
    """Least pairwise cosine of each sample's gradients: for two losses, cos(g_1, g_2).

    Args:
        gram: Gram blocks (B, K, K).

    Returns:
        Agreement (B,) in [-1, 1], over the pairs of nonzero gradients; 0 where there is no such pair (see
        [defined][harmony.defined]).

    Examples:
        >>> import torch, harmony
        >>> harmony.agreement(torch.tensor([[[4.0, -3.0], [-3.0, 9.0]], [[4.0, 0.0], [0.0, 0.0]]]))
        tensor([-0.5000,  0.0000])

    References:
        Wu et al., 2022 (arXiv:2211.02077), supplement, section 1: cos(g_va, g_vt).
    """
    check_blocks(gram)
    pairs = _defined_pairs(gram)
    least = torch.where(pairs, cosine(gram), 2).flatten(-2).amin(-1)
    return torch.where(pairs.flatten(-2).any(-1), least, 0)


def defined(gram: Tensor) -> Tensor:
    """Whether a sample has an agreement at all: at least two of its gradients are nonzero, and finite.

    A sample without text or without sound has one loss that does not see it, and no agreement: it counts for no
    quantile, no histogram and no conflict rate, and no curriculum drops it.

    Args:
        gram: Gram blocks (B, K, K).

    Returns:
        Mask (B,).

    Examples:
        >>> import torch, harmony
        >>> harmony.defined(torch.tensor([[[4.0, -3.0], [-3.0, 9.0]], [[4.0, 0.0], [0.0, 0.0]]]))
        tensor([ True, False])
    """
    check_blocks(gram)
    return _nonzero(_norms(gram)).sum(-1) >= 2


def check_blocks(gram: Tensor) -> None:
    """Raise a ValueError unless ``gram`` has the shape of Gram blocks, (B, K, K)."""
    if gram.ndim != 3 or gram.shape[-1] != gram.shape[-2]:
        raise ValueError(f"expected Gram blocks of shape (B, K, K); got {tuple(gram.shape)}.")


def _norms(gram: Tensor) -> Tensor:
    return gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()


def _nonzero(norms: Tensor) -> Tensor:
    return (norms > 0) & norms.isfinite()


def _defined_pairs(gram: Tensor) -> Tensor:
    nonzero = _nonzero(_norms(gram))
    k = gram.shape[-1]
    off_diagonal = ~torch.eye(k, dtype=torch.bool, device=gram.device)
    return nonzero[..., :, None] & nonzero[..., None, :] & off_diagonal
