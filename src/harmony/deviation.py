"""How far numbers are from what they should be, each measured by its own scale."""

from collections.abc import Sequence

import torch
from torch import Tensor


def deviations(got: Sequence[Tensor], expected: Sequence[Tensor], floor: float) -> list[float]:
    """Largest deviation of every tensor, relative to the largest entry of the block it is in.

    Blocks that are zero but for rounding have no scale of their own: those below ``floor`` of their tensor's largest
    entry are measured by that, and tensors below ``floor`` of the largest entry of all by the latter.

    Args:
        got: Tensors (n, ...), n being the blocks: samples, say.
        expected: What they should be.
        floor: Rounding, relative.

    Returns:
        One number for each tensor, infinite where something is no number that should be one.
    """
    scales = torch.stack([_largest(e) for e in expected])
    errors = torch.stack([_largest(g - e) for g, e in zip(got, expected, strict=True)])
    of_tensor = _own_or(scales.amax(1, keepdim=True), scales.max(), floor)
    relative = errors / _own_or(scales, of_tensor, floor)
    result: list[float] = relative.nan_to_num(torch.inf, torch.inf).amax(1).tolist()
    return result


def _largest(x: Tensor) -> Tensor:
    """The largest entry of every block (n,)."""
    return x.detach().abs().reshape(len(x), -1).amax(1).double()


def _own_or(own: Tensor, other: Tensor, floor: float) -> Tensor:
    """A scale, or another where it is below the floor; one where both are zero."""
    scale = torch.where(own > floor * other, own, other)
    return torch.where(scale > 0, scale, 1)
