"""Linear systems with small positive definite matrices."""

import torch
from torch import Tensor


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve ``matrix @ x = right`` by Gauss-Jordan elimination, without pivoting.

    Args:
        matrix: Symmetric positive definite (N, K, K).
        right: (N, K).

    Returns:
        x (N, K); finite, if not meaningful, where the matrix is not positive definite.
    """
    table = torch.cat([matrix, right[..., None]], -1)
    eye = torch.eye(matrix.shape[-1], dtype=table.dtype, device=table.device)
    for k in range(matrix.shape[-1]):
        row = table[:, k] / table[:, k, k, None].clamp(min=1e-15)
        table = table - (table[:, :, k] - eye[k])[..., None] * row[:, None]
    return table[..., -1]
