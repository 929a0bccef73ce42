"""Matrix products into a buffer, on tensor cores where factors are in half precision."""

import functools

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def multiply(out: Tensor, left: Tensor, right: Tensor, add: bool) -> None:
    """Write ``left @ right`` into a buffer (g, i, o) of at least float32, or add it to what stands there.

    Products of half-precision numbers are exact in float32, so that summing them there loses nothing against casting
    the factors first; a GPU does it on tensor cores.
    """
    if left.dtype == right.dtype != out.dtype and left.dtype in HALF and _takes_half(out.device, left.dtype):
        if add:
            torch.baddbmm(out, left, right, out_dtype=out.dtype, out=out)
        else:
            torch.bmm(left, right, out_dtype=out.dtype, out=out)
        return
    left, right = left.to(out.dtype), right.to(out.dtype)
    if add:
        out.baddbmm_(left, right)
    else:
        torch.bmm(left, right, out=out)


def product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """``left @ right`` in a buffer of its own."""
    out = torch.empty(len(left), left.shape[1], right.shape[2], dtype=dtype, device=left.device)
    multiply(out, left, right, add=False)
    return out


@functools.cache
def _takes_half(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch multiplies half-precision factors into a strided float32 buffer here, and rightly so."""
    factors = torch.arange(64, device=device).view(2, 4, 8).to(dtype)
    expected = factors.float() @ factors.float().mT
    out = torch.zeros(2, 40, device=device)[:, 3:19].view(2, 4, 4)
    try:
        torch.bmm(factors, factors.mT, out_dtype=out.dtype, out=out)
        torch.baddbmm(out, factors, factors.mT, out_dtype=out.dtype, out=out)
    except (RuntimeError, TypeError):  # NotImplementedError on a device without it
        return False
    return torch.equal(out, 2 * expected)
