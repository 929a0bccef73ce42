"""Projection on the dual cone: the nearest update that conflicts with no gradient. UPGrad and DualProj."""

from torch import Tensor

from harmony.members import samplewise
from harmony.numerics.complementarity import nonnegative_minimum
from harmony.numerics.unit import UnitBlocks, times
from harmony.realign.preference import Preference, preferred


@samplewise
def upgrad(gram: Tensor, preference: Preference = None) -> Tensor:
    """Project each gradient on the cone of updates that conflict with no gradient, and add them up.

    The result conflicts with no gradient, for any number of losses; the pairwise projections of PCGrad promise that for
    two losses only, where both are the same. Quinton and Rey, 2024 (arXiv:2406.16232), section 3.

    Args:
        gram: Gram blocks (B, K, K).
        preference: Factors of the gradients (K,), at least 0; default ones. The mean of the paper is 1 / K.

    Returns:
        Weights (B, K). For two losses a closed form; for more, as exact as [mgda][harmony.realign.mgda].

    Examples:
        >>> harmony.realign.upgrad(torch.tensor([[[1.0, -0.5], [-0.5, 1.0]]]))
        tensor([[1.5000, 1.5000]])
    """
    blocks, wanted = preferred(gram, preference)
    length = wanted * blocks.length
    if gram.shape[-1] == 2:
        added = (-blocks.cosine[:, 0, 1, None]).clamp(min=0) * length.flip(-1)
    else:
        added = (length[..., None] * _conflict_free(blocks, blocks.cosine)).sum(1)
    return blocks.weights(wanted + added / blocks.norm, wanted)


@samplewise
def dualproj(gram: Tensor, preference: Preference = None) -> Tensor:
    """Project the sum of the gradients on the cone of updates that conflict with no gradient.

    Args:
        gram: Gram blocks (B, K, K).
        preference: Factors of the gradients (K,), at least 0; default ones. The mean of the papers is 1 / K.

    Returns:
        Weights (B, K), as accurate as those of [upgrad][harmony.realign.upgrad]. Lopez-Paz and Ranzato, 2017
        (arXiv:1706.08840), equations 8 to 11; Quinton and Rey, 2024 (arXiv:2406.16232).

    Examples:
        >>> harmony.realign.dualproj(torch.tensor([[[4.0, -2.0], [-2.0, 1.5]]]))  # the sum opposes the second alone
        tensor([[1.0000, 1.3333]])
    """
    blocks, wanted = preferred(gram, preference)
    products = times(blocks.cosine, wanted * blocks.length)  # <sum, unit g_k>
    added = (-products).clamp(min=0) if gram.shape[-1] == 2 else _conflict_free(blocks, products[:, None])[:, 0]
    return blocks.weights(wanted + added / blocks.norm, wanted)


def _conflict_free(blocks: UnitBlocks, products: Tensor) -> Tensor:
    """Coefficients (B, N, K) of the unit gradients: what to add to N vectors so that they conflict with no gradient.

    ``products`` (B, N, K) are the inner products of the vectors with the unit gradients.
    """
    b, n, k = products.shape
    matrix = blocks.ridged[:, None].expand(b, n, k, k)
    added = nonnegative_minimum(matrix.reshape(b * n, k, k), -products.reshape(b * n, k), blocks.ridge / 2)
    return added.view(b, n, k)
