"""Linear systems with small positive definite matrices."""

import torch
from torch import Tensor


def solve(matrix: Tensor, right: Tensor, floor: float = 0.0) -> Tensor:
    """Solve ``matrix @ x = right`` by Gauss-Jordan elimination, without pivoting.

    Args:
        matrix: Symmetric positive definite (N, K, K).
        right: (N, K).
        floor: Less than the least eigenvalue. A pivot at or below it shows that the matrix is not positive definite;
            its unknown is left out.

    Returns:
        x (N, K), 0 where an unknown was left out.
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
