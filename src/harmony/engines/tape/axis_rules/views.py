"""Ops that show the same entries in another shape or order of axes, parts of a tensor, and tensors put together."""

import math
from collections.abc import Sequence

import torch

from harmony.engines.tape import autograd_fields as fields
from harmony.engines.tape.axis_rules.op import Op
from harmony.engines.tape.layout import (
    NOBODY,
    Layout,
    Mark,
    RowMap,
    State,
    on_axis,
    place_of_rows,
    state_of_entries,
)


def reshaped(op: Op) -> State | None:
    """A view keeps the order of all entries."""
    place = op.place
    if isinstance(place, RowMap):
        return _reshaped_rows(place, op.shape, op.input)
    before = math.prod(op.shape[: place.axis]) * place.outer
    after = math.prod(op.shape[place.axis + 1 :]) * place.inner
    for axis, entries in enumerate(op.input):
        outer, rest_before = divmod(before, math.prod(op.input[:axis]))
        inner, rest_after = divmod(after, math.prod(op.input[axis + 1 :]))
        if not rest_before and not rest_after and outer * op.size * inner == entries:
            return Layout(axis, outer, inner)
    return Mark.UNKNOWN


def _reshaped_rows(place: RowMap, output: Sequence[int], shape: Sequence[int]) -> State | None:
    last = len(output)
    while last > place.axis + 1 and len(shape) and output[last - 1] == shape[-1]:  # what both have in common
        last, shape = last - 1, shape[:-1]
    entries = place.ids.view([-1 if axis == place.axis else 1 for axis in range(last)]).expand(output[:last])
    return state_of_entries(entries.reshape(shape), place.size)


def permuted(op: Op) -> State:
    """``permute``."""
    return on_axis(op.place, op.dims(len(op.shape), "dims")[op.place.axis])


def transposed(op: Op) -> State:
    """``transpose``."""
    dims = [op.dim(len(op.shape), name) for name in ("dim0", "dim1")]
    axis = op.place.axis
    return on_axis(op.place, dims[1 - dims.index(axis)] if axis in dims else axis)


def flipped(op: Op) -> State:
    """``t``."""
    return on_axis(op.place, len(op.shape) - 1 - op.place.axis)


def same_axis(op: Op) -> State:
    """``view_as_real``, ``view_as_complex``: another axis at the end, or none."""
    return op.place


def part(op: Op) -> State | None:
    """``slice``, ``select``, ``split``, ``unbind``: a part of the input along a dimension."""
    dim = op.dim(len(op.input))
    removed = len(op.shape) < len(op.input)
    axis = op.place.axis + (removed and op.place.axis >= dim)
    if removed or axis != dim:
        return on_axis(op.place, axis)
    ids = torch.full((op.input[dim],), NOBODY, device="cpu")
    ids[_rows_of_part(op, dim)] = op.ids
    return place_of_rows(dim, ids, op.size)


def _rows_of_part(op: Op, dim: int) -> slice:
    if "Slice" in op.node.name():
        return slice(fields.signed(op.option("start")), fields.signed(op.option("end")), op.option("step"))
    start = sum(shape[dim] for shape in op.outputs[: op.number])
    return slice(start, start + op.shape[dim])


def concatenated(op: Op) -> State | None:
    """``cat``."""
    dim = op.dim(len(op.shape))
    if dim != op.place.axis:
        return op.place
    lengths = [0 if shape is None else shape[dim] for shape in op.inputs]
    if op.inputs.count(None) > 1:  # their lengths are not known
        return Mark.UNKNOWN
    if None in op.inputs:
        lengths[op.inputs.index(None)] = op.shape[dim] - sum(lengths)
    start = sum(lengths[: op.slot])
    return place_of_rows(dim, op.ids[start : start + lengths[op.slot]], op.size)


def stacked(op: Op) -> State:
    """``stack``."""
    dim, axis = op.dim(len(op.shape)), op.place.axis
    if dim != axis:
        return on_axis(op.place, axis - (axis > dim))
    return RowMap(0, op.ids[op.slot].expand(op.input[0]), op.size) if op.input else Mark.UNKNOWN


_PARTS = "Slice Select Split SplitWithSizes UnsafeSplit UnsafeSplitWithSizes Unbind"
RULES = {
    "Cat": concatenated,
    "Permute": permuted,
    "Stack": stacked,
    "T": flipped,
    "Transpose": transposed,
    **dict.fromkeys(["ViewAsComplex", "ViewAsReal"], same_axis),
    **dict.fromkeys(["View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze"], reshaped),
    **dict.fromkeys(_PARTS.split(), part),
}
