"""What is remembered of single samples, in bounded memory: a table with one place for each hash of an id."""

from typing import NamedTuple

import torch
from torch import Tensor

from harmony.checkpoint import loadable
from harmony.numerics.counter import mix

EMPTY = torch.iinfo(torch.int64).min


@loadable
class Memory(NamedTuple):
    """One number for each of the samples seen last.

    Attributes:
        ids: Ids (capacity + 1,) of the samples, by place; the last place takes what is not to be remembered.
        values: Their numbers (capacity + 1,), float32.
    """

    ids: Tensor
    values: Tensor


def memory(capacity: int) -> Memory:
    """An empty memory, on the host; it moves to the device of the ids at its first use.

    Raises:
        ValueError: No capacity.

    Examples:
        >>> memory(2).values
        tensor([0., 0., 0.])
    """
    if capacity < 1:
        raise ValueError(f"capacity must be at least 1; got {capacity}.")
    return Memory(torch.full((capacity + 1,), EMPTY, dtype=torch.int64), torch.zeros(capacity + 1))


def recall(memory: Memory, ids: Tensor) -> tuple[Tensor, Tensor]:
    """What is known of some samples: numbers (B,), and a mask (B,) of those that are known."""
    ids, place = _places(memory, ids)
    return memory.values.to(ids.device)[place], memory.ids.to(ids.device)[place] == ids


def remember(memory: Memory, ids: Tensor, values: Tensor, mask: Tensor) -> Memory:
    """The memory after some samples (B,), of which the mask says which count; of equal places the last row stays."""
    ids, place = _places(memory, ids)
    place = torch.where(mask, place, len(memory.ids) - 1)
    # Writing twice to one place has no defined order on every device: find the last row of each place first.
    ordered, rows = place.sort(stable=True)
    values = torch.where(mask, values, 0)
    last = torch.ones_like(ordered, dtype=torch.bool)
    last[:-1] = ordered[1:] != ordered[:-1]
    target = torch.where(last, ordered, len(memory.ids) - 1)
    return Memory(
        memory.ids.to(ids.device).index_copy(0, target, ids[rows]),
        memory.values.to(ids.device).index_copy(0, target, values[rows].to(memory.values.dtype)),
    )


def _places(memory: Memory, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The ids as 64-bit integers, and their places."""
    if ids.is_floating_point() or ids.is_complex():
        raise TypeError(f"ids must be integers; got {ids.dtype}.")
    ids = ids.long()
    return ids, mix(ids).remainder(len(memory.ids) - 1)
