"""Eigenvalues of small symmetric matrices. ``torch.linalg.eigh`` would wait for the device."""

import itertools

import torch
from torch import Tensor


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (N, K), unordered, and eigenvectors, in the columns of (N, K, K), of symmetric matrices (N, K, K).

    By cyclic Jacobi rotations; for K = 2 one rotation is exact. Golub and Van Loan, Matrix Computations, section 8.5.
    """
    k = matrix.shape[-1]
    vectors = torch.eye(k, dtype=matrix.dtype, device=matrix.device).expand_as(matrix)
    sweeps = 1 if k == 2 else 5 + k.bit_length()
    for _ in range(sweeps):
        for p, q in itertools.combinations(range(k), 2):
            off = matrix[:, p, q]
            # the smaller of the two angles that make the entry vanish
            half = (matrix[:, q, q] - matrix[:, p, p]) / 2
            sign = torch.where(half < 0, -1.0, 1.0)
            length = half.abs() + (half**2 + off**2).sqrt()
            tangent = sign * off / torch.where(length > 0, length, 1)
            c = (1 + tangent**2).rsqrt()
            s = tangent * c
            matrix = _rotate(matrix, p, q, c, s)
            matrix = _rotate(matrix.mT, p, q, c, s)
            vectors = _rotate(vectors, p, q, c, s)
    return matrix.diagonal(dim1=-2, dim2=-1), vectors


def _rotate(matrix: Tensor, p: int, q: int, c: Tensor, s: Tensor) -> Tensor:
    """Rotate columns p and q."""
    columns = list(matrix.unbind(-1))
    a, b = columns[p], columns[q]
    columns[p] = c[:, None] * a - s[:, None] * b
    columns[q] = s[:, None] * a + c[:, None] * b
    return torch.stack(columns, -1)


def pseudo_inverse_times(matrix: Tensor, right: Tensor, precision: float) -> Tensor:
    """``pinv(matrix) @ right`` (N, K) for positive semidefinite matrices (N, K, K) of that relative error."""
    values, vectors = eigh(matrix)
    kept = significant(values, precision)
    along = (vectors * right[..., None]).sum(-2) * torch.where(kept, 1 / torch.where(kept, values, 1), 0)
    return (vectors * along[..., None, :]).sum(-1)


def significant(values: Tensor, precision: float) -> Tensor:
    """Mask (N, K) of the eigenvalues that are not zero, for matrices of that relative error."""
    return values > values.shape[-1] * precision * values.amax(-1, keepdim=True).clamp(min=0)
