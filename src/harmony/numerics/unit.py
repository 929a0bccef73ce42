"""Gram blocks in normal form: cosines, relative norms, and the gradients that count. All realignments start here."""

from typing import NamedTuple

import torch
from torch import Tensor

from harmony.cosines import check_blocks


class UnitBlocks(NamedTuple):
    """The Gram blocks of unit gradients, in float64, whatever the range and the precision of the input.

    Attributes:
        cosine: Cosines (B, K, K). A zero gradient counts as a direction orthogonal to all others.
        norm: Norms (B, K) relative to the largest of the sample, in (0, 1]; 1 for a zero gradient.
        scale: The largest norm of each sample (B, 1); 1 if there is none.
        active: Mask (B, K) of the gradients that are neither zero nor infinite.
        dtype: The dtype of the Gram.
    """

    cosine: Tensor
    norm: Tensor
    scale: Tensor
    active: Tensor
    dtype: torch.dtype

    @property
    def length(self) -> Tensor:
        """Relative norms (B, K), 0 for a zero gradient."""
        return torch.where(self.active, self.norm, 0)

    @property
    def precision(self) -> float:
        """The rounding error of the Gram."""
        return torch.finfo(self.dtype).eps

    @property
    def ridge(self) -> float:
        """What the diagonal of a singular system needs: more than the rounding error of the Gram.

        Rounded cosines may make a matrix slightly indefinite; with this on its diagonal it is definite.
        """
        return max(4 * self.norm.shape[-1] * self.precision, 1e-12)

    @property
    def ridged(self) -> Tensor:
        """The cosines (B, K, K) with the ridge on their diagonal: positive definite, no eigenvalue below it."""
        return self.cosine + self.ridge * torch.eye(self.norm.shape[-1], dtype=self.norm.dtype, device=self.norm.device)

    @property
    def rarest(self) -> Tensor:
        """Least norm over norm (B, K), in (0, 1]; 0 for zero gradients. Proportional to 1 / norm, without overflow."""
        least = torch.where(self.active, self.norm, 1).amin(-1, keepdim=True)
        return torch.where(self.active, least / self.norm, 0)

    def weights(self, weights: Tensor, idle: float | Tensor = 1.0) -> Tensor:
        """Weights (B, K) in the dtype of the Gram, ``idle`` for zero gradients; finite, whatever the norms."""
        limit = torch.finfo(self.dtype).max
        return torch.where(self.active, weights, idle).clamp(-limit, limit).to(self.dtype)


def unit_blocks(gram: Tensor) -> UnitBlocks:
    """Bring Gram blocks (B, K, K) into normal form."""
    check_blocks(gram)
    blocks = gram.detach().to(torch.float32 if gram.device.type == "mps" else torch.float64)  # MPS has no float64
    norm = blocks.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    active = (norm > 0) & norm.isfinite()
    norm = torch.where(active, norm, 1)
    # Two divisions: the product of two norms may leave the range of the dtype where each of them does not. The longer
    # first, so that the order of the losses makes no difference.
    rows, columns = norm[:, :, None], norm[:, None, :]
    cosine = (blocks / torch.maximum(rows, columns) / torch.minimum(rows, columns)).clamp(-1, 1)
    cosine = torch.where(active[:, :, None] & active[:, None, :], cosine, 0)
    eye = torch.eye(blocks.shape[-1], dtype=blocks.dtype, device=blocks.device)
    scale = torch.where(active, norm, 0).amax(-1, keepdim=True)
    scale = torch.where(scale > 0, scale, 1)
    norm = torch.where(active, norm / scale, 1)
    return UnitBlocks(torch.where(eye > 0, eye, cosine), norm, scale, active, gram.dtype)


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Products (..., K) of matrices (..., K, K) and vectors (..., K); elementwise, so that autocast leaves it alone."""
    return (matrix * vector[..., None, :]).sum(-1)
