"""Ops that show the same entries in another shape or order of axes."""

import math
from collections.abc import Sequence

from harmony.engines.tape.axis_rules.op import Claims, Mark, Op, State
from harmony.engines.tape.axis_rules.places import at, place_of_entries
from harmony.engines.tape.graph import signed
from harmony.engines.tape.layout import Layout, RowMap


def reshaped(op: Op) -> Claims:
    """A view keeps the order of all entries."""
    shape = op.input
    place = op.place
    if isinstance(place, RowMap):
        return [_reshaped_rows(place, op.shape, shape)]
    before = math.prod(op.shape[: place.axis]) * place.outer
    after = math.prod(op.shape[place.axis + 1 :]) * place.inner
    for axis, entries in enumerate(shape):
        outer, rest = divmod(before, math.prod(shape[:axis]))
        inner, more = divmod(after, math.prod(shape[axis + 1 :]))
        if not rest and not more and outer * op.size * inner == entries:
            return [Layout(axis, outer, inner)]
    return [Mark.UNKNOWN]


def _reshaped_rows(place: RowMap, output: Sequence[int], shape: Sequence[int]) -> State | None:
    output, shape = list(output), list(shape)
    while len(output) > place.axis + 1 and shape and output[-1] == shape[-1]:  # what both have in common
        output.pop(), shape.pop()
    entries = place.ids.view([-1 if axis == place.axis else 1 for axis in range(len(output))]).expand(output)
    return place_of_entries(entries.reshape(shape), place.size)


def permuted(op: Op) -> Claims:
    """``permute``."""
    dims = [signed(d) % len(op.shape) for d in op.option("dims")]
    return [at(op.place, dims[op.place.axis])]


def transposed(op: Op) -> Claims:
    """``transpose``."""
    dims = [signed(op.option(name)) % len(op.shape) for name in ("dim0", "dim1")]
    axis = op.place.axis
    return [at(op.place, dims[1 - dims.index(axis)] if axis in dims else axis)]


def flipped(op: Op) -> Claims:
    """``t``."""
    return [at(op.place, len(op.shape) - 1 - op.place.axis)]


def same_axis(op: Op) -> Claims:
    """Ops that leave the sample axis alone wherever it is."""
    return [None if shape is None else at(op.place, op.place.axis) for shape in op.inputs]


RULES = {
    "Permute": permuted,
    "T": flipped,
    "Transpose": transposed,
    "ViewAsComplex": same_axis,
    "ViewAsReal": same_axis,
    **dict.fromkeys(["View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze"], reshaped),
}
