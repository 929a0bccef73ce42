"""Quadratic programs over the positive orthant, by an active set."""

import torch
from torch import Tensor

from harmony.numerics.elimination import solve
from harmony.numerics.unit import times


def nonnegative_minimum(matrix: Tensor, linear: Tensor, floor: float = 0.0) -> Tensor:
    """Minimise ``x^T H x / 2 - q^T x`` over ``x >= 0``.

    Starts from x = 0, where every variable is held. Each of 4 K rounds frees the variable that gains most, and moves x
    to the minimum over the free variables, as far as they stay positive; those that reach zero are held again. The
    value never rises, so there are no cycles. Each system is solved from scratch, so rounding errors do not pile up.

    Args:
        matrix: H (N, K, K), symmetric positive definite, with a diagonal near 1.
        linear: q (N, K).
        floor: Less than the least eigenvalue of H; see [solve][harmony.numerics.elimination.solve].

    Returns:
        x (N, K).

    References:
        Lawson and Hanson, Solving Least Squares Problems, 1974, chapter 23.
    """
    k = linear.shape[-1]
    eye = torch.eye(k, dtype=matrix.dtype, device=matrix.device)
    x = torch.zeros_like(linear)
    free = torch.zeros_like(linear, dtype=torch.bool)
    settled = torch.ones_like(linear[:, :1], dtype=torch.bool)  # x is the minimum over the free variables
    tolerance = 1e-13 * linear.abs().amax(-1, keepdim=True)
    for _ in range(4 * k):
        gain = torch.where(free, -torch.inf, linear - times(matrix, x))
        most = gain.amax(-1, keepdim=True)
        freed = (gain == most) & (most > tolerance) & settled
        freed = freed & (freed.cumsum(-1) == 1)
        tried = free | freed
        inside = tried[..., None] & tried[..., None, :]
        target = solve(torch.where(inside, matrix, eye), torch.where(tried, linear, 0), floor)
        # A freed variable must rise. Where rounding errors, or an indefinite matrix, say otherwise it stays held.
        wrong = ((freed & (target <= 0)) | ~target.isfinite()).any(-1, keepdim=True)
        free, target = torch.where(wrong, free, tried), torch.where(wrong, x, target)
        falls = free & (target <= 0)
        share = torch.where(falls, x / torch.where(falls, x - target, 1), torch.inf)  # of the way, until one is zero
        step = share.amin(-1, keepdim=True).clamp(max=1)
        held = falls & (share <= step)
        free = free & ~held
        x = torch.where(free, (x + step * (target - x)).clamp(min=0), 0)
        settled = ~held.any(-1, keepdim=True)
    return x
