"""Preference vectors: how much each loss counts."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from harmony.numerics.unit import UnitBlocks, unit_blocks

Preference = Sequence[float] | Tensor | None


def preferred(gram: Tensor, preference: Preference) -> tuple[UnitBlocks, Tensor]:
    """Gram blocks in normal form, and what each of the K losses counts (K,); ones for None."""
    blocks = unit_blocks(gram)
    k, like = gram.shape[-1], blocks.cosine
    if preference is None:
        return blocks, torch.ones(k, dtype=like.dtype, device=like.device)
    if len(preference) != k:
        raise ValueError(f"preference has {len(preference)} entries, the Gram blocks are of {k} losses.")
    if isinstance(preference, Tensor):  # its numbers are not checked: reading them would wait for the device
        return blocks, preference.to(like)
    if not all(math.isfinite(p) and p >= 0 for p in preference):
        raise ValueError(f"a preference is at least 0 and finite; got {list(preference)}.")
    one = torch.ones((), dtype=like.dtype, device=like.device)
    return blocks, torch.stack([one * p for p in preference])  # made on the device: a copy would wait for it
