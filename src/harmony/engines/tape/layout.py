"""Where the samples lie in a tensor."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

NOBODY = -1  # number of a row, or an entry, that no sample's gradient reaches
SEVERAL = -2  # number of an entry that the gradients of several samples reach


class Layout(NamedTuple):
    """Samples at regular places along one axis, in einops' words ``(outer b inner)``; 1 where nothing is merged."""

    axis: int
    outer: int
    inner: int

    @property
    def rows(self) -> int:
        """Entries of the axis that belong to one sample."""
        return self.outer * self.inner

    @property
    def contiguous(self) -> bool:
        """Whether the rows of a sample lie side by side, so that a view takes them out."""
        return self.outer == 1


@dataclass(frozen=True, eq=False)
class RowMap:
    """Samples at any places along one axis: packed tokens, rows that are routed to experts, parts side by side."""

    axis: int
    ids: Tensor  # the sample (n,) that each row belongs to, on the host
    size: int  # B

    contiguous = False  # rows are gathered

    @cached_property
    def table(self) -> tuple[Tensor, Tensor]:
        """Numbers of the rows (B, rows) of each sample, filled up with zeros, and a mask (B, rows) of what is valid."""
        order = self.ids.argsort(stable=True)
        owners = self.ids[order]
        order, owners = order[owners >= 0], owners[owners >= 0]
        counts = torch.bincount(owners, minlength=self.size)
        columns = torch.arange(len(owners), device="cpu") - (counts.cumsum(0) - counts)[owners]
        index = torch.zeros(self.size, max(1, int(counts.max())), dtype=torch.int64, device="cpu")
        valid = torch.zeros_like(index, dtype=torch.bool)
        index[owners, columns] = order
        valid[owners, columns] = True
        return index, valid

    @property
    def rows(self) -> int:
        """Entries of the axis that belong to the sample with most of them."""
        return self.table[0].shape[1]

    @cached_property
    def lone(self) -> bool:
        """Whether all rows belong to one sample."""
        return bool((self.ids[self.ids >= 0] == self.ids.max()).all())


Place = Layout | RowMap


class Mark(enum.Enum):
    """What can be said of a tensor besides a place for its samples."""

    COMMON = "the gradients of all samples reach all of it"
    MIXED = "the gradients of several samples meet in it"
    UNKNOWN = "no rule tells"


State = Place | Mark
"""Where the samples lie in a tensor, as far as one of its uses tells."""


def on_axis(place: Place, axis: int) -> Place:
    return place._replace(axis=axis) if isinstance(place, Layout) else RowMap(axis, place.ids, place.size)


def aligned(place: Place, output: Sequence[int], shape: Sequence[int]) -> State:
    """State of an input of this shape that broadcasts to the output."""
    axis = place.axis - (len(output) - len(shape))
    if axis < 0 or (shape[axis] == 1 and output[place.axis] > 1):
        return Mark.COMMON
    return on_axis(place, axis)


def row_ids(place: Place, rows: int, size: int) -> Tensor:
    """The sample (rows,) that each row along the sample axis belongs to, on the host."""
    return place.ids if isinstance(place, RowMap) else torch.arange(rows, device="cpu") // place.inner % size


def place_of_rows(axis: int, ids: Tensor, size: int) -> Place | None:
    """The place of rows that belong to the samples ``ids`` (n,): regular where they can be read that way."""
    if not bool((ids >= 0).any()):  # no gradient reaches these rows
        return None
    rows, rest = divmod(len(ids), size)
    if rows and not rest:
        numbers = torch.arange(len(ids), device="cpu")
        for inner in (n for n in range(rows, 0, -1) if rows % n == 0):
            if bool(((numbers // inner % size == ids) | (ids == NOBODY)).all()):
                return Layout(axis, rows // inner, inner)
    return RowMap(axis, ids, size)


def state_of_entries(entries: Tensor, size: int) -> State | None:
    """State of a tensor, given the sample of each of its entries, ``NOBODY`` or ``SEVERAL``; None for nobody's."""
    single, several = entries >= 0, entries == SEVERAL
    if not bool(single.any()):
        return Mark.COMMON if bool(several.any()) else None
    if bool(several.any()) or entries.ndim == 0:
        return Mark.MIXED
    candidates = []
    for axis in range(entries.ndim):
        flat = entries.movedim(axis, 0).reshape(entries.shape[axis], -1)
        highest = flat.max(1).values
        lowest = torch.where(flat < 0, size, flat).min(1).values
        if bool(((highest < 0) | (highest == lowest)).all()):
            candidates.append(place_of_rows(axis, highest.cpu(), size))
    regular = [place for place in candidates if isinstance(place, Layout)]
    return (regular or candidates or [Mark.MIXED])[0]
