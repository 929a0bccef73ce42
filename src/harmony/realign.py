"""Realignment: conflicting gradients of a sample, made to agree. Pure functions of Gram blocks."""

import torch
from torch import Tensor

from harmony.cosines import check_blocks
from harmony.transform import samplewise


@samplewise
def pcgrad(gram: Tensor) -> Tensor:
    """Project each gradient on the normal plane of every other gradient it conflicts with.

    Gradient k starts as ``g_k`` and, for each other loss l in order, loses its component along the original ``g_l``
    where their inner product is negative. For two losses this is the realignment of gradient harmonization: where
    ``G_12 < 0`` the weights are ``(1 - G_12 / G_11, 1 - G_12 / G_22)``, else ones.

    Args:
        gram: Gram blocks (B, K, K).

    Returns:
        Weights (B, K) such that ``sum_k W_bk g_b^k`` is the sum of the projected gradients.

    Examples:
        >>> import torch, harmony
        >>> harmony.realign.pcgrad(torch.tensor([[[1.0, -0.5], [-0.5, 1.0]], [[1.0, 0.5], [0.5, 1.0]]]))
        tensor([[1.5000, 1.5000],
                [1.0000, 1.0000]])

    References:
        Yu et al., Gradient Surgery for Multi-Task Learning, 2020 (arXiv:2001.06782), algorithm 1;
        Wu et al., 2022 (arXiv:2211.02077).
    """
    check_blocks(gram)
    k = gram.shape[-1]
    squared = gram.diagonal(dim1=-2, dim2=-1)
    safe = torch.where(squared > 0, squared, 1)
    # coefficients[b, i, :]: the i-th projected gradient in terms of the K original ones
    coefficients = torch.eye(k, dtype=gram.dtype, device=gram.device).expand(len(gram), k, k).clone()
    for other in range(k):
        product = (coefficients * gram[:, None, :, other]).sum(-1)  # (B, K); no matmul, which autocast would coarsen
        step = product.clamp(max=0) / safe[:, other, None]
        step[:, other] = 0
        coefficients[:, :, other] -= step
    return coefficients.sum(1)
