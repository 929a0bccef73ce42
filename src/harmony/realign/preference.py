"""Preference vectors: how much each loss counts."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Preference = Sequence[float] | Tensor | None


def as_preference(preference: Preference, blocks: Tensor) -> Tensor:
    """A preference as a tensor (K,) that fits some blocks (B, K, K); ones for None.

    Raises:
        ValueError: Another number of entries than losses, or a number that is negative or not finite.
    """
    k = blocks.shape[-1]
    if preference is None:
        return torch.ones(k, dtype=blocks.dtype, device=blocks.device)
    if len(preference) != k:
        raise ValueError(f"preference has {len(preference)} entries, the Gram blocks are of {k} losses.")
    if isinstance(preference, Tensor):  # not looked at: that would wait for the device
        return preference.to(blocks)
    if not all(math.isfinite(p) and p >= 0 for p in preference):
        raise ValueError(f"a preference is at least 0 and finite; got {list(preference)}.")
    entry = torch.ones((), dtype=blocks.dtype, device=blocks.device)
    return torch.stack([entry * p for p in preference])  # made on the device: a copy would wait for it
