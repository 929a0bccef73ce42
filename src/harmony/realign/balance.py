"""Balance: updates that serve all losses alike. IMTL-G, Nash-MTL, FairGrad."""

import torch
from torch import Tensor

from harmony.members import samplewise
from harmony.numerics.eigen import pseudo_inverse_times
from harmony.numerics.elimination import solve
from harmony.numerics.unit import UnitBlocks, times, unit_blocks

STEPS = 64
"""Newton steps of the bargaining solvers: enough where alpha is from 0.5 to 4 and norms are up to 1e10 apart."""


@samplewise
def imtl_g(gram: Tensor) -> Tensor:
    """Impartial: the combination whose inner products with all unit gradients are equal.

    Args:
        gram: Gram blocks (B, K, K).

    Returns:
        Weights (B, K) that sum to 1 over the nonzero gradients. For two losses proportional to ``1 / |g_k|``; for more,
        they may be negative, and large where gradients nearly oppose each other. Where the update would ascend, all
        signs are turned, and the weights sum to -1. The pseudo-inverse takes care of linearly dependent gradients. Liu
        et al., Towards Impartial Multi-task Learning, 2021, equation 4.

    Examples:
        >>> harmony.realign.imtl_g(torch.tensor([[[1.0, -0.5], [-0.5, 9.0]]]))
        tensor([[0.7500, 0.2500]])
    """
    blocks = unit_blocks(gram)
    v = blocks.rarest  # proportional to 1 / |g_k|
    if gram.shape[-1] > 2:
        ones = blocks.active.to(v.dtype)
        v = v * pseudo_inverse_times(blocks.cosine, ones, blocks.precision) * ones
    total = v.sum(-1, keepdim=True).abs()
    total = torch.maximum(total, blocks.ridge * v.abs().sum(-1, keepdim=True))
    return blocks.weights(v / torch.where(total > 0, total, 1))


@samplewise
def nash_mtl(gram: Tensor) -> Tensor:
    """Nash bargaining: weights with ``W_k <g_k, update> = 1`` for every loss.

    The update maximises the product of what the losses gain. It has length sqrt(K), whatever the gradients' lengths:
    choose the learning rate accordingly. Navon et al., 2022 (arXiv:2202.01017), section 3.2.

    Args:
        gram: Gram blocks (B, K, K).

    Returns:
        Weights (B, K), positive. For two losses ``1 / (|g_k| sqrt(1 + cos))``; for more, by Newton steps. Opposite
        gradients have no solution: the cosine is kept above -1 by the rounding error of the Gram's dtype.

    Examples:
        >>> harmony.realign.nash_mtl(torch.tensor([[[1.0, 0.0], [0.0, 4.0]]]))
        tensor([[1.0000, 0.5000]])
    """
    blocks = unit_blocks(gram)
    if gram.shape[-1] == 2:  # a zero gradient has cosine 0
        u = (1 + blocks.cosine[:, 0, 1, None]).clamp(min=blocks.ridge).rsqrt()
    else:
        u = _bargain(blocks, torch.ones_like(blocks.norm), 1.0)
    return blocks.weights(u / blocks.norm / blocks.scale)


@samplewise
def fairgrad(gram: Tensor, alpha: float = 2.0) -> Tensor:
    """Alpha-fair: weights with ``<g_k, update> = W_k ** (-1 / alpha)`` for every loss.

    ``alpha`` goes from efficiency (0, the ordinary gradient) over proportional fairness (1, which is Nash-MTL) towards
    max-min fairness. Where the gradients double, the weights change by ``2 ** (-2 alpha / (1 + alpha))``. Ban and Ji,
    2024 (arXiv:2402.15638), equation 4.

    Args:
        gram: Gram blocks (B, K, K).
        alpha: Fairness, at least 0.1.

    Returns:
        Weights (B, K), positive, by Newton steps: exact to 1e-8 of ``|g_k| |update|`` in float64, for alpha from 0.5 to
        4 and norms up to a factor of 1e10 apart. Far beyond, the steps do not suffice for every block.

    Examples:
        >>> harmony.realign.fairgrad(torch.tensor([[[1.0, 0.0], [0.0, 8.0]]]), alpha=0.5)
        tensor([[1.0000, 0.5000]])
    """
    if not alpha >= 0.1:
        raise ValueError(
            f"alpha must be at least 0.1; got {alpha}. Towards 0 this is the ordinary gradient: realign.summed."
        )
    blocks = unit_blocks(gram)
    target = blocks.norm.clamp(min=1e-30) ** (1 / alpha - 1)
    u = _bargain(blocks, target, alpha)
    return blocks.weights(u / blocks.norm * blocks.scale ** (-2 * alpha / (1 + alpha)))


def _bargain(blocks: UnitBlocks, target: Tensor, alpha: float) -> Tensor:
    """Solve ``C u = target * u ** (-1 / alpha)`` for u > 0: Newton's method on a strictly convex function.

    C has the ridge on its diagonal: without it, opposite gradients have no solution.
    """
    matrix = blocks.ridged
    k = matrix.shape[-1]
    # From u^T C u >= ridge |u|^2, for any gradients; beyond this limit are rounding errors only.
    limit = (k * target.amax(-1, keepdim=True) / blocks.ridge) ** (alpha / (1 + alpha))
    start = target ** (alpha / (1 + alpha))  # the solution for orthogonal gradients
    u = start
    for _ in range(STEPS):
        v = u / start
        slope = times(matrix, u) - start * v ** (-1 / alpha)
        step = -solve(matrix + torch.diag_embed(v ** (-1 / alpha - 1) / alpha), slope, blocks.ridge / 2)
        step = torch.where(step.isfinite(), step, 0)
        damping = 0.95 / (-step / u).amax(-1, keepdim=True).clamp(min=0.95)  # u stays positive; at most the whole step
        u = torch.minimum(u + damping * step, limit)
    return u
