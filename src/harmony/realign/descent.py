"""Common descent directions: MGDA, the shortest convex combination, and CAGrad, the best worst case near the sum."""

import torch
from torch import Tensor

from harmony.arguments import check_range
from harmony.members import samplewise
from harmony.numerics.complementarity import nonnegative_minimum
from harmony.numerics.unit import UnitBlocks, times, unit_blocks
from harmony.realign.preference import Preference, preferred

STEPS = 10
"""Newton steps of CAGrad; they converge from one side, and quadratically."""


@samplewise
def mgda(gram: Tensor) -> Tensor:
    """The shortest convex combination of the gradients: zero where the sample is Pareto stationary.

    Args:
        gram: Gram blocks (B, K, K).

    Returns:
        Weights (B, K) of at least 0 that sum to 1 over the nonzero gradients. For two losses a closed form; for more,
        exact for the Gram with the rounding error of its dtype added to the diagonal of its cosines. Desideri, 2012;
        Sener and Koltun, 2018 (arXiv:1810.04650), equation 3.

    Examples:
        >>> harmony.realign.mgda(torch.tensor([[[1.0, 0.0], [0.0, 3.0]]]))
        tensor([[0.7500, 0.2500]])
    """
    blocks = unit_blocks(gram)
    if gram.shape[-1] == 2:
        n1, n2, cosine, squared = _two(blocks)
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

    It maximises ``min_k <g_k, d>`` over all ``|d - g_0| <= c |g_0|``, with ``g_0`` the sum of the gradients. Liu et
    al., 2021 (arXiv:2110.14048), equation 3 and algorithm 1.

    Args:
        gram: Gram blocks (B, K, K).
        c: Radius in [0, 1), as a share of ``|g_0|``; 0 is the ordinary gradient.
        preference: Factors of the gradients in ``g_0`` (K,), at least 0; default ones. The mean of the paper is 1 / K.

    Returns:
        Weights (B, K), at least the preference; equal to it for a single gradient. For two losses a closed form; for
        more, as exact as [mgda][harmony.realign.mgda].

    Examples:
        >>> harmony.realign.cagrad(torch.tensor([[[4.0, -2.0], [-2.0, 1.5]]]), c=0.5)
        tensor([[1.0000, 1.5000]])
    """
    check_range("c", c, at_least=0, below=1)
    blocks, wanted = preferred(gram, preference)
    length = wanted * blocks.length
    products = times(blocks.cosine, length)  # <g_0, unit g_k>
    radius = c * (length * products).sum(-1, keepdim=True).clamp(min=0).sqrt()
    z = _worst_case_of_two(blocks, products, radius) if gram.shape[-1] == 2 else _worst_case(blocks, products, radius)
    several = blocks.active.sum(-1, keepdim=True) > 1
    return blocks.weights(wanted + torch.where(several, z / blocks.norm, 0), wanted)


def _worst_case(blocks: UnitBlocks, products: Tensor, radius: Tensor) -> Tensor:
    """Coefficients z (B, K) of the unit gradients in ``d - g_0``.

    The optimum has ``<g_k, d> >= nu``, with equality where z_k > 0, and length ``radius``. For a given nu, z solves a
    quadratic program, and its length is a convex function of nu: Newton steps from above find the right one.
    """
    a, matrix = blocks.rarest, blocks.ridged
    alone = (products + radius) / torch.where(blocks.active, a, 1)  # nu if d - g_0 went along one gradient alone
    nu = torch.where(blocks.active, alone, torch.inf).amin(-1, keepdim=True)
    nu = torch.where(nu.isfinite(), nu, 0)
    for _ in range(STEPS):
        z = nonnegative_minimum(matrix, nu * a - products, blocks.ridge / 2)
        length = _length(z, matrix)
        slope = (a * z).sum(-1, keepdim=True)
        nu = nu - torch.where(slope > 0, (length - radius) * length / torch.where(slope > 0, slope, 1), 0)
    z = _rescaled(nonnegative_minimum(matrix, nu * a - products, blocks.ridge / 2), matrix, radius)
    return torch.where(z.isfinite(), z, 0)  # blocks without gradients


def _worst_case_of_two(blocks: UnitBlocks, products: Tensor, radius: Tensor) -> Tensor:
    """The same in closed form: the least of ``<g_0, g_w> + radius |g_w|`` for ``g_w = t g_1 + (1 - t) g_2``."""
    n1, n2, cosine, squared = _two(blocks)
    apart = squared.sqrt()
    safe = torch.where(apart > 0, apart, 1)
    # along the line through g_1 and g_2: its nearest point to zero, the distance of that point, the slope of <g_0, .>
    nearest = n2 * (n2 - cosine * n1) / safe
    distance = (n1 * n2).square() * (1 - cosine**2) / safe**2
    slope = (n1 * products[:, 0] - n2 * products[:, 1]) / safe
    steep = (radius[:, 0] ** 2 - slope**2).clamp(min=0).sqrt()
    offset = torch.where(steep > 0, -slope * distance.clamp(min=0).sqrt() / torch.where(steep > 0, steep, 1), 0)
    flat = torch.where(slope > 0, 0.0, apart)  # the slope outweighs the length: an end is best
    along = torch.where(steep > 0, nearest + offset, flat)
    t = torch.where(apart > 0, along / safe, 0.5).clamp(0, 1)
    return _rescaled(torch.stack([t * n1, (1 - t) * n2], -1), blocks.cosine, radius)


def _two(blocks: UnitBlocks) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of two gradients: both norms, the cosine, and ``|g_1 - g_2|^2``; each (B,)."""
    (n1, n2), cosine = blocks.norm.unbind(-1), blocks.cosine[:, 0, 1]
    return n1, n2, cosine, (n1 - n2) ** 2 + 2 * n1 * n2 * (1 - cosine)


def _length(z: Tensor, matrix: Tensor) -> Tensor:
    """Length (B, 1) of vectors with coefficients z (B, K), in the metric of the matrix."""
    return (z * times(matrix, z)).sum(-1, keepdim=True).clamp(min=0).sqrt()


def _rescaled(z: Tensor, matrix: Tensor, radius: Tensor) -> Tensor:
    """The coefficients of vectors of length ``radius``."""
    length = _length(z, matrix)
    return torch.where(length > 0, radius / torch.where(length > 0, length, 1), 0) * z
