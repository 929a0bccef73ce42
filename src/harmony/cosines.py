"""Agreement of a sample's gradients: cosines read from Gram blocks."""

import torch
from torch import Tensor

from harmony.members import samplewise


def cosine(gram: Tensor) -> Tensor:
    """Cosine between each pair of gradients of each sample.

    Args:
        gram: Gram blocks (B, K, K).

    Returns:
        Cosines (B, K, K) in [-1, 1]; 0 wherever one of the two gradients is zero.

    Examples:
        >>> harmony.cosine(torch.tensor([[[4.0, -3.0], [-3.0, 9.0]]]))
        tensor([[[ 1.0000, -0.5000],
                 [-0.5000,  1.0000]]])
    """
    check_blocks(gram)
    norm = _norms(gram)
    norm = torch.where(norm > 0, norm, 1)
    # Two divisions: the product of two norms may leave the range of the dtype where each of them does not.
    return (gram / norm[..., :, None] / norm[..., None, :]).clamp(-1, 1)


@samplewise
def agreement(gram: Tensor) -> Tensor:
    """Least pairwise cosine of each sample's gradients; for two losses cos(g_1, g_2), the score of the paper.

    Args:
        gram: Gram blocks (B, K, K).

    Returns:
        Agreement (B,) in [-1, 1], over the pairs of nonzero gradients; NaN where there is no such pair, see
        [defined][harmony.defined]. Wu et al., 2022 (arXiv:2211.02077), supplement, section 1.

    Examples:
        >>> harmony.agreement(torch.tensor([[[4.0, -3.0], [-3.0, 9.0]], [[4.0, 0.0], [0.0, 0.0]]]))
        tensor([-0.5000,     nan])
    """
    cosines = cosine(gram)
    nonzero = _nonzero(gram)
    off_diagonal = ~torch.eye(gram.shape[-1], dtype=torch.bool, device=gram.device)
    pairs = nonzero[..., :, None] & nonzero[..., None, :] & off_diagonal
    least = torch.where(pairs, cosines, 2).flatten(-2).amin(-1)
    return torch.where(pairs.flatten(-2).any(-1), least, torch.nan)


def defined(gram: Tensor) -> Tensor:
    """Whether a sample has an agreement: at least two of its gradients are nonzero and finite.

    A sample that lacks a modality has one loss that does not see it, and no agreement. Quantiles, histograms and
    conflict rates do not count it, and no curriculum drops it.

    Args:
        gram: Gram blocks (B, K, K).

    Returns:
        Mask (B,).

    Examples:
        >>> harmony.defined(torch.tensor([[[4.0, -3.0], [-3.0, 9.0]], [[4.0, 0.0], [0.0, 0.0]]]))
        tensor([ True, False])
    """
    check_blocks(gram)
    return _nonzero(gram).sum(-1) >= 2


def check_blocks(gram: Tensor) -> None:
    """Raise a ValueError unless ``gram`` has the shape of Gram blocks, (B, K, K)."""
    if gram.ndim != 3 or gram.shape[-1] != gram.shape[-2]:
        raise ValueError(f"expected Gram blocks of shape (B, K, K); got {tuple(gram.shape)}.")


def _norms(gram: Tensor) -> Tensor:
    return gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()


def _nonzero(gram: Tensor) -> Tensor:
    """Mask (B, K) of the gradients that are neither zero nor infinite."""
    norms = _norms(gram)
    return (norms > 0) & norms.isfinite()
