"""Blocks of consecutive samples, and how to bring them to the front of a tensor, in groups."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from harmony.engines.tape.layout import Place, RowMap


class SampleBlock(NamedTuple):
    """Consecutive samples: ``groups`` groups of ``size`` samples each, from sample ``start`` on."""

    start: int
    groups: int
    size: int

    @property
    def samples(self) -> slice:
        return slice(self.start, self.start + self.groups * self.size)

    def within(self, block: "SampleBlock") -> slice:
        """The groups as a slice of those of a larger block."""
        first = (self.start - block.start) // self.size
        return slice(first, first + self.groups)

    def cut(self, at_most: int) -> Iterator["SampleBlock"]:
        """Consecutive blocks of at most so many groups."""
        for first in range(0, self.groups, at_most):
            yield SampleBlock(self.start + first * self.size, min(at_most, self.groups - first), self.size)


def equal_groups(samples: int, group_size: int) -> Iterator[SampleBlock]:
    """The whole groups of a batch, and what is left over at the end."""
    groups, rest = divmod(samples, group_size)
    if groups:
        yield SampleBlock(0, groups, group_size)
    if rest:
        yield SampleBlock(groups * group_size, 1, rest)


def grouped(x: Tensor, place: Place, block: SampleBlock) -> Tensor:
    """Bring the groups of a block to the front: (groups, size, *shape), ``shape`` being that of one sample.

    The sample axis keeps its place in ``shape``, with the rows of one sample. No copy, unless samples lie between two
    merged axes or at irregular places; samples with fewer rows than others are then filled up with zeros.
    """
    axis = place.axis
    if isinstance(place, RowMap):
        index, valid = (t[block.samples].to(x.device) for t in place.table)
        rows = x.movedim(axis, 0)[index]
        rows = rows.masked_fill(~valid.view(*valid.shape, *[1] * (x.ndim - 1)), 0)
        return split(rows.movedim(1, axis + 1), 0, (block.groups, block.size))
    outer, inner = place.outer, place.inner
    if axis == 0 and outer == 1:  # the usual case: one view
        rows = x[block.samples.start * inner : block.samples.stop * inner]
        return split(rows, 0, (block.groups, block.size, inner))
    x = split(x, axis, (outer, x.shape[axis] // (outer * inner), inner)).movedim(axis + 1, 0)
    return split(x[block.samples].flatten(axis + 1, axis + 2), 0, (block.groups, block.size))


def split(x: Tensor, axis: int, sizes: Sequence[int]) -> Tensor:
    """Cut one axis into several: a typed ``unflatten``."""
    return x.view(*x.shape[:axis], *sizes, *x.shape[axis + 1 :])


def spread(values: Tensor, place: Place, ndim: int) -> Tensor:
    """Spread one value per sample (B,) along the sample axis, ready to multiply a tensor of ``ndim`` axes."""
    if isinstance(place, RowMap):
        rows = torch.cat([values, values.new_zeros(1)])[place.ids.to(values.device)]  # the last one belongs to nobody
    else:
        rows = values.view(1, -1, 1).expand(place.outer, -1, place.inner).reshape(-1)
    return rows.view([-1 if axis == place.axis else 1 for axis in range(ndim)])


def only(x: Tensor, place: Place, block: SampleBlock) -> Tensor:
    """The entries of the samples of a block, zero elsewhere."""
    masked = torch.zeros_like(x, memory_format=torch.contiguous_format)
    if isinstance(place, RowMap):
        start, stop = block.samples.start, block.samples.stop
        rows = ((place.ids >= start) & (place.ids < stop)).nonzero().flatten().to(x.device)
        return masked.index_copy_(place.axis, rows, x.index_select(place.axis, rows))
    axis, outer, inner = place
    sizes = (outer, x.shape[axis] // (outer * inner), inner)
    index = (*[slice(None)] * (axis + 1), block.samples)
    split(masked, axis, sizes)[index] = split(x, axis, sizes)[index]
    return masked
