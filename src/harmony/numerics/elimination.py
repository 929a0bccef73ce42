"""Linear systems with small positive definite matrices."""

import torch
from torch import Tensor


def solve(matrix: Tensor, right: Tensor, floor: float = 0.0) -> Tensor:
    """Solve ``matrix @ x = right`` for positive definite (N, K, K) and (N, K), by Gauss-Jordan elimination.

    ``floor`` is less than the least eigenvalue: a pivot at or below it is a rounding error, and its unknown becomes 0.
    """
    table = torch.cat([matrix, right[..., None]], -1)
    kept = []
    is_row = torch.eye(matrix.shape[-1], dtype=torch.bool, device=table.device)[..., None]
    for k in range(matrix.shape[-1]):
        pivot = table[:, k, k, None]
        kept.append(pivot > floor)
        row = torch.where(kept[k], table[:, k] / torch.where(kept[k], pivot, 1), 0)
        table = torch.where(is_row[k], row[:, None], table - table[:, :, k, None] * row[:, None])
    return torch.where(torch.cat(kept, -1), table[..., -1], 0)
