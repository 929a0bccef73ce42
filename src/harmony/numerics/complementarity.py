"""Quadratic programs over the positive orthant, by principal pivoting."""

import torch
from torch import Tensor

from harmony.numerics.elimination import solve


def nonnegative_minimum(matrix: Tensor, linear: Tensor) -> Tensor:
    """Minimise ``x^T H x / 2 - q^T x`` over ``x >= 0``.

    Starts from x = 0 and lets the first variable that violates its condition change sides, until none does. For
    positive definite matrices this ends after fewer than 2^K exchanges; beyond K = 5 there are at most 8 K of them, of
    which random problems need a fraction. One elimination on the support found gives x its accuracy.

    Args:
        matrix: H (N, K, K), symmetric positive definite.
        linear: q (N, K).

    Returns:
        x (N, K).

    References:
        Murty, Note on a Bard-type scheme for solving the complementarity problem, Opsearch 11, 1974.
    """
    k = linear.shape[-1]
    table, slack = matrix, -linear  # slack of the conditions, as a function of the variables that are zero
    support = torch.zeros_like(linear, dtype=torch.bool)
    tolerance = 1e-14 * linear.abs().amax(-1, keepdim=True)
    for _ in range(min(2**k, max(32, 8 * k))):
        violated = slack < -tolerance
        first = violated & (violated.cumsum(-1) == 1)
        chosen = first.to(table.dtype)
        row = (chosen[..., None] * table).sum(-2)
        column = (table * chosen[..., None, :]).sum(-1)
        pivot = (row * chosen).sum(-1, keepdim=True)
        # Where nothing is violated, row and column are zero. A matrix that is not definite must not end in NaN.
        step = (column + chosen) / torch.where(pivot > 1e-15, pivot, torch.inf)
        table = table - step[..., None] * (row - chosen)[..., None, :]
        slack = slack - step * (slack * chosen).sum(-1, keepdim=True)
        support = support ^ first
    inside = support[..., None] & support[..., None, :]
    eye = torch.eye(k, dtype=matrix.dtype, device=matrix.device)
    return solve(torch.where(inside, matrix, eye), torch.where(support, linear, 0)).clamp(min=0)
