"""The history of single samples in bounded memory: a table with one place for each hash of an id."""

from typing import NamedTuple

import torch
from torch import Tensor

from harmony.arguments import check_range
from harmony.checkpoint import loadable
from harmony.numerics.counter import mix

EMPTY = torch.iinfo(torch.int64).min


@loadable
class History(NamedTuple):
    """One number for each of the latest samples.

    Attributes:
        ids: Ids (capacity + 1,) of the samples, by place. The last place takes what is not remembered.
        values: Their numbers (capacity + 1,), float32.
    """

    ids: Tensor
    values: Tensor


def empty_history(capacity: int) -> History:
    """A table without samples, on the host; its first use moves it to the device of the ids."""
    check_range("capacity", capacity, at_least=1)
    return History(torch.full((capacity + 1,), EMPTY, dtype=torch.int64), torch.zeros(capacity + 1))


def recall(history: History, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers (B,) of some samples, and a mask (B,) of the samples that are known."""
    ids, places = _places(history, ids)
    return history.values.to(ids.device)[places], history.ids.to(ids.device)[places] == ids


def remember(history: History, ids: Tensor, values: Tensor, mask: Tensor) -> History:
    """The history after new numbers (B,) where ``mask`` is true. Of several rows for one place, the last one stays."""
    ids, places = _places(history, ids)
    unused = len(history.ids) - 1
    # On some devices, two writes to one place have no defined order: write the last row of each place only.
    ordered, rows = torch.where(mask, places, unused).sort(stable=True)
    last = torch.ones_like(ordered, dtype=torch.bool)
    last[:-1] = ordered[1:] != ordered[:-1]
    targets = torch.where(last, ordered, unused)
    values = torch.where(mask, values, 0).to(history.values.dtype)
    return History(
        history.ids.to(ids.device).index_copy(0, targets, ids[rows]),
        history.values.to(ids.device).index_copy(0, targets, values[rows]),
    )


def _places(history: History, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The ids as 64-bit integers, and their places."""
    if ids.is_floating_point() or ids.is_complex():
        raise TypeError(f"ids must be integers; got {ids.dtype}.")
    ids = ids.long()
    return ids, mix(ids).remainder(len(history.ids) - 1)
