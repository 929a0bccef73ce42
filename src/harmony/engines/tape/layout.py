"""Where the samples lie in a tensor, and how to bring them to the front, in groups."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Layout(NamedTuple):
    """Samples along one axis, in einops' words ``(outer b inner)``; 1 where nothing is merged on that side."""

    axis: int
    outer: int
    inner: int

    @property
    def rows(self) -> int:
        """Entries of the axis that belong to one sample."""
        return self.outer * self.inner


class Part(NamedTuple):
    """Consecutive samples: ``groups`` groups of ``size`` samples each, from sample ``start`` on."""

    start: int
    groups: int
    size: int

    @property
    def samples(self) -> slice:
        """The samples as a slice of the batch."""
        return slice(self.start, self.start + self.groups * self.size)


def grouped(x: Tensor, layout: Layout, part: Part) -> Tensor:
    """Bring the groups of a part to the front: (groups, size, *shape), ``shape`` being that of one sample.

    The sample axis keeps its place in ``shape``, with the rows of one sample. No copy, unless samples lie between two
    merged axes.
    """
    axis, outer, inner = layout
    x = split(x, axis, (outer, x.shape[axis] // (outer * inner), inner)).movedim(axis + 1, 0)
    return split(x[part.samples].flatten(axis + 1, axis + 2), 0, (part.groups, part.size))


def split(x: Tensor, axis: int, sizes: Sequence[int]) -> Tensor:
    """Cut one axis into several: a typed ``unflatten``."""
    return x.view(*x.shape[:axis], *sizes, *x.shape[axis + 1 :])


def along(values: Tensor, layout: Layout, ndim: int) -> Tensor:
    """Spread one value per sample (B,) along the sample axis, ready to multiply a tensor of ``ndim`` axes."""
    spread = values.view(1, -1, 1).expand(layout.outer, -1, layout.inner).reshape(-1)
    return spread.view([-1 if axis == layout.axis else 1 for axis in range(ndim)])
