"""Where the samples lie in a tensor, and how to bring them to the front, in groups."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

NOBODY = -1
"""Mark of a row that no sample's gradient reaches."""


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
    """Samples at any places along one axis: packed tokens, rows that are routed to experts, parts side by side.

    Attributes:
        axis: The axis.
        ids: Number of the sample (n,) that each row belongs to, on the host; ``NOBODY`` for rows of no sample.
        size: B.
    """

    axis: int
    ids: Tensor
    size: int

    @cached_property
    def table(self) -> tuple[Tensor, Tensor]:
        """Numbers of the rows (B, rows) of each sample, filled up with zeros, and a mask (B, rows) of what is valid."""
        order = self.ids.argsort(stable=True)
        owners = self.ids[order]
        order, owners = order[owners >= 0], owners[owners >= 0]
        counts = torch.bincount(owners, minlength=self.size)
        place = torch.arange(len(owners), device="cpu") - (counts.cumsum(0) - counts)[owners]
        index = torch.zeros(self.size, max(1, int(counts.max())), dtype=torch.int64, device="cpu")
        valid = torch.zeros_like(index, dtype=torch.bool)
        index[owners, place] = order
        valid[owners, place] = True
        return index, valid

    @property
    def rows(self) -> int:
        """Entries of the axis that belong to the sample with most of them."""
        return self.table[0].shape[1]

    @property
    def contiguous(self) -> bool:
        """Never: rows are gathered."""
        return False

    @cached_property
    def lone(self) -> bool:
        """Whether all rows belong to one sample."""
        return bool((self.ids[self.ids >= 0] == self.ids.max()).all())


Place = Layout | RowMap
"""Where the samples lie in a tensor."""


class SampleBlock(NamedTuple):
    """Consecutive samples: ``groups`` groups of ``size`` samples each, from sample ``start`` on."""

    start: int
    groups: int
    size: int

    @property
    def samples(self) -> slice:
        """The samples as a slice of the batch."""
        return slice(self.start, self.start + self.groups * self.size)

    def within(self, part: "SampleBlock") -> slice:
        """The groups as a slice of those of a larger part."""
        first = (self.start - part.start) // self.size
        return slice(first, first + self.groups)


def grouped(x: Tensor, place: Place, part: SampleBlock) -> Tensor:
    """Bring the groups of a part to the front: (groups, size, *shape), ``shape`` being that of one sample.

    The sample axis keeps its place in ``shape``, with the rows of one sample. No copy, unless samples lie between two
    merged axes or at irregular places; samples with fewer rows than others are then filled up with zeros.
    """
    axis = place.axis
    if isinstance(place, RowMap):
        index, valid = (t[part.samples].to(x.device) for t in place.table)
        rows = x.movedim(axis, 0)[index]
        rows = rows.masked_fill(~valid.view(*valid.shape, *[1] * (x.ndim - 1)), 0)
        return split(rows.movedim(1, axis + 1), 0, (part.groups, part.size))
    outer, inner = place.outer, place.inner
    if axis == 0 and outer == 1:  # as nearly always: one view
        rows = x[part.start * inner : (part.start + part.groups * part.size) * inner]
        return split(rows, 0, (part.groups, part.size, inner))
    x = split(x, axis, (outer, x.shape[axis] // (outer * inner), inner)).movedim(axis + 1, 0)
    return split(x[part.samples].flatten(axis + 1, axis + 2), 0, (part.groups, part.size))


def split(x: Tensor, axis: int, sizes: Sequence[int]) -> Tensor:
    """Cut one axis into several: a typed ``unflatten``."""
    return x.view(*x.shape[:axis], *sizes, *x.shape[axis + 1 :])


def along(values: Tensor, place: Place, ndim: int) -> Tensor:
    """Spread one value per sample (B,) along the sample axis, ready to multiply a tensor of ``ndim`` axes."""
    if isinstance(place, RowMap):
        spread = torch.cat([values, values.new_zeros(1)])[place.ids.to(values.device)]  # the last one is nobody's
    else:
        spread = values.view(1, -1, 1).expand(place.outer, -1, place.inner).reshape(-1)
    return spread.view([-1 if axis == place.axis else 1 for axis in range(ndim)])


def row_ids(place: Place, rows: int, size: int) -> Tensor:
    """Number of the sample (rows,) that each row along the sample axis belongs to, on the host."""
    return place.ids if isinstance(place, RowMap) else torch.arange(rows, device="cpu") // place.inner % size


def place_of(axis: int, ids: Tensor, size: int) -> Place | None:
    """The place of rows that belong to the samples ``ids`` (n,): regular where they can be read that way.

    Nobody's rows fit everywhere, since no gradient reaches them; None where all rows are nobody's.
    """
    if not bool((ids >= 0).any()):
        return None
    rows, rest = divmod(len(ids), size)
    if rows and not rest:
        numbers = torch.arange(len(ids), device="cpu")
        for inner in (n for n in range(rows, 0, -1) if rows % n == 0):
            if bool(((numbers // inner % size == ids) | (ids == NOBODY)).all()):
                return Layout(axis, rows // inner, inner)
    return RowMap(axis, ids, size)
