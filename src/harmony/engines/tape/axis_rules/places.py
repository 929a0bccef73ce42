"""Places of the samples, moved and read off."""

from collections.abc import Sequence

import torch
from torch import Tensor

from harmony.engines.tape.axis_rules.op import Mark, State
from harmony.engines.tape.layout import Layout, Place, RowMap, place_of

SEVERAL = -2
"""Mark of an entry that the gradients of several samples reach."""


def at(place: Place, axis: int) -> Place:
    """The same rows along another axis."""
    return place._replace(axis=axis) if isinstance(place, Layout) else RowMap(axis, place.ids, place.size)


def place_of_entries(entries: Tensor, size: int) -> State | None:
    """The place of entries (any shape) that belong to the samples given, or what else can be said of them.

    Args:
        entries: Number of the sample of each entry; ``NOBODY``, or ``SEVERAL``.
        size: B.
    """
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
            candidates.append(place_of(axis, highest.cpu(), size))
    regular = [place for place in candidates if isinstance(place, Layout)]
    return (regular or candidates or [Mark.MIXED])[0]


def aligned(place: Place, output: Sequence[int], shape: Sequence[int]) -> State:
    """Place in an input of this shape that broadcasts to the output."""
    axis = place.axis - (len(output) - len(shape))
    if axis < 0 or (shape[axis] == 1 and output[place.axis] > 1):
        return Mark.COMMON
    return at(place, axis)
