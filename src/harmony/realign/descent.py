"""Common descent directions: MGDA, the shortest convex combination, and CAGrad, the best worst case near the sum."""

import torch
from torch import Tensor

from harmony.numerics.complementarity import nonnegative_minimum
from harmony.numerics.unit import UnitBlocks, times, unit_blocks
from harmony.realign.preference import Preference, as_preference
from harmony.transform import samplewise

STEPS = 10
"""Newton steps of CAGrad; they converge from one side, and quadratically."""


@samplewise
def mgda(gram: Tensor) -> Tensor:
    """The shortest convex combination of the gradients: zero where the sample is Pareto stationary.

    Args:
        gram: Gram blocks (B, K, K).

    Returns:
        Weights (B, K) of at least 0 that sum to 1 over the nonzero gradients. For two losses a closed form; for more,
        exact up to the rounding error of the Gram's dtype, which is added to the diagonal of its cosines.

    Examples:
        >>> import torch, harmony
        >>> harmony.realign.mgda(torch.tensor([[[1.0, 0.0], [0.0, 3.0]], [[1.0, 1.5], [1.5, 9.0]]]))
        tensor([[0.7500, 0.2500],
                [1.0000, 0.0000]])

    References:
        Desideri, Multiple-gradient descent algorithm, 2012; Sener and Koltun, 2018 (arXiv:1810.04650), equation 3.
    """
    blocks = unit_blocks(gram)
    if gram.shape[-1] == 2:
        (n1, n2), cosine = blocks.norm.unbind(-1), blocks.cosine[:, 0, 1]
        squared = (n1 - n2) ** 2 + 2 * n1 * n2 * (1 - cosine)  # |g_1 - g_2|^2
        pair = torch.stack([n2 * (n2 - cosine * n1), n1 * (n1 - cosine * n2)], -1).clamp(min=0)
        pair = torch.where(squared[:, None] > 0, pair, 1)
        pair = pair / pair.sum(-1, keepdim=True)
        return blocks.weights(torch.where(blocks.active.all(-1, keepdim=True), pair, 1))
    # With y_k = w_k |g_k| the constraint is a^T y = 1; a penalty in its place changes the length of y alone.
    a = blocks.rarest
    y = nonnegative_minimum(blocks.ridged + a[:, :, None] * a[:, None, :], a, blocks.ridge / 2)
    total = (a * y).sum(-1, keepdim=True)
    return blocks.weights(a * y / torch.where(total > 0, total, 1))


@samplewise
def cagrad(gram: Tensor, c: float = 0.5, preference: Preference = None) -> Tensor:
    """Conflict-averse gradient: near the sum of the gradients, the update that serves the worst-off loss best.

    It maximises ``min_k <g_k, d>`` over all ``|d - g_0| <= c |g_0|``, with ``g_0`` the sum of the gradients.

    Args:
        gram: Gram blocks (B, K, K).
        c: Radius in [0, 1), as a share of ``|g_0|``; 0 is the ordinary gradient.
        preference: What each gradient counts in ``g_0`` (K,), at least 0; default ones. The paper's mean is 1 / K.

    Returns:
        Weights (B, K), at least the preference, and no more where there is but one gradient. For two losses a closed
        form; for more, exact for the Gram with the rounding error of its dtype added to the diagonal of its cosines.

    Raises:
        ValueError: A radius out of [0, 1), or a preference that does not fit.

    Examples:
        >>> import torch, harmony
        >>> harmony.realign.cagrad(torch.tensor([[[4.0, -2.0], [-2.0, 1.5]]]), c=0.5)
        tensor([[1.0000, 1.5000]])

    References:
        Liu et al., Conflict-Averse Gradient Descent, 2021 (arXiv:2110.14048), equation 3 and algorithm 1.
    """
    if not 0 <= c < 1:
        raise ValueError(f"c must be at least 0 and below 1; got {c}.")
    blocks = unit_blocks(gram)
    wanted = as_preference(preference, blocks.cosine)
    own = torch.where(blocks.active, wanted * blocks.norm, 0)
    towards = times(blocks.cosine, own)  # <g_0, unit g_k>
    radius = c * (own * towards).sum(-1, keepdim=True).clamp(min=0).sqrt()
    added = _worst_case_of_two(blocks, towards, radius) if own.shape[-1] == 2 else _worst_case(blocks, towards, radius)
    several = blocks.active.sum(-1, keepdim=True) > 1
    return blocks.weights(wanted + torch.where(several, added / blocks.norm, 0), wanted)


def _worst_case(blocks: UnitBlocks, towards: Tensor, radius: Tensor) -> Tensor:
    """Coefficients z (B, K) of the unit gradients in ``d - g_0``.

    The optimum has ``<g_k, d> >= nu``, with equality where z_k > 0, and length ``radius``. For a given nu, z solves a
    quadratic program, and its length is a convex function of nu: Newton steps from above find the right one.
    """
    a, matrix = blocks.rarest, blocks.ridged
    reached = (towards + radius) / torch.where(blocks.active, a, 1)  # if d - g_0 went along one gradient alone
    nu = torch.where(blocks.active, reached, torch.inf).amin(-1, keepdim=True)
    nu = torch.where(nu.isfinite(), nu, 0)
    for _ in range(STEPS):
        z = nonnegative_minimum(matrix, nu * a - towards, blocks.ridge / 2)
        length = (z * times(matrix, z)).sum(-1, keepdim=True).clamp(min=0).sqrt()
        slope = (a * z).sum(-1, keepdim=True)
        nu = nu - torch.where(slope > 0, (length - radius) * length / torch.where(slope > 0, slope, 1), 0)
    z = nonnegative_minimum(matrix, nu * a - towards, blocks.ridge / 2)
    length = (z * times(matrix, z)).sum(-1, keepdim=True).clamp(min=0).sqrt()
    z = torch.where(length > 0, radius / torch.where(length > 0, length, 1), 0) * z
    return torch.where(z.isfinite(), z, 0)  # blocks of no gradients at all


def _worst_case_of_two(blocks: UnitBlocks, towards: Tensor, radius: Tensor) -> Tensor:
    """The same in closed form: the least of ``<g_0, g_w> + radius |g_w|`` for ``g_w = t g_1 + (1 - t) g_2``."""
    (n1, n2), cosine = blocks.norm.unbind(-1), blocks.cosine[:, 0, 1]
    radius = radius[:, 0]
    squared = (n1 - n2) ** 2 + 2 * n1 * n2 * (1 - cosine)  # |g_1 - g_2|^2
    apart = squared.sqrt()
    safe = torch.where(apart > 0, apart, 1)
    # along the line through g_1 and g_2: its nearest point to zero, the distance of that point, the slope of <g_0, .>
    nearest = n2 * (n2 - cosine * n1) / safe
    distance = (n1 * n2).square() * (1 - cosine**2) / safe**2
    slope = (n1 * towards[:, 0] - n2 * towards[:, 1]) / safe
    steep = (radius**2 - slope**2).clamp(min=0).sqrt()
    offset = torch.where(steep > 0, -slope * distance.clamp(min=0).sqrt() / torch.where(steep > 0, steep, 1), 0)
    flat = torch.where(slope > 0, 0.0, apart)  # the slope outweighs the length: an end is best
    along = torch.where(steep > 0, nearest + offset, flat)
    t = torch.where(apart > 0, along / safe, 0.5).clamp(0, 1)
    z = torch.stack([t * n1, (1 - t) * n2], -1)
    length = (z * times(blocks.cosine, z)).sum(-1, keepdim=True).clamp(min=0).sqrt()
    return torch.where(length > 0, radius[:, None] / torch.where(length > 0, length, 1), 0) * z
