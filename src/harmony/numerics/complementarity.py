"""Quadratic programs over the positive orthant, by principal pivoting."""

import torch
from torch import Tensor

from harmony.numerics.elimination import solve
from harmony.numerics.unit import times


def nonnegative_minimum(matrix: Tensor, linear: Tensor, floor: float = 0.0) -> Tensor:
    """Minimise ``x^T H x / 2 - q^T x`` over ``x >= 0``.

    Starts from x = 0. In each of 4 K rounds a variable that violates its condition changes sides, and the system on the
    new support is solved from scratch, so that no rounding error piles up; the x that came nearest to all conditions is
    kept. For 2 K rounds it is the variable that violates most, which is fast and now and then runs in a circle; then
    the first that violates, which never does. With a condition number of 1e8 and more than five variables, one problem
    in ten thousand may still be left short of its minimum.

    Args:
        matrix: H (N, K, K), symmetric positive definite, with a diagonal near 1.
        linear: q (N, K).
        floor: Less than the least eigenvalue of H; see [solve][harmony.numerics.elimination.solve].

    Returns:
        x (N, K).

    References:
        Murty, Note on a Bard-type scheme for solving the complementarity problem, Opsearch 11, 1974.
    """
    k = linear.shape[-1]
    eye = torch.eye(k, dtype=matrix.dtype, device=matrix.device)
    size = linear.abs().amax(-1, keepdim=True)
    linear = linear / torch.where(size > 0, size, 1)
    support = torch.zeros_like(linear, dtype=torch.bool)
    best = torch.zeros_like(linear)
    least = linear.amax(-1, keepdim=True).clamp(min=0)  # how much x = 0 violates
    violation = linear
    for number in range(4 * k):
        violated = violation > 1e-13
        if number < 2 * k:
            violated = violated & (violation == violation.amax(-1, keepdim=True))
        support = support ^ (violated & (violated.cumsum(-1) == 1))
        inside = support[..., None] & support[..., None, :]
        x = solve(torch.where(inside, matrix, eye), torch.where(support, linear, 0), floor)
        slack = times(matrix, x) - linear
        violation = torch.where(support, -x / x.abs().amax(-1, keepdim=True).clamp(min=1), -slack)
        worst = violation.amax(-1, keepdim=True)
        better = worst < least
        best, least = torch.where(better, x, best), torch.where(better, worst, least)
    return best.clamp(min=0) * size
