"""Ops that take parts of a tensor, and ops that put tensors together."""

import torch

from harmony.engines.tape.axis_rules.op import Claims, Mark, Op
from harmony.engines.tape.axis_rules.places import at
from harmony.engines.tape.graph import signed
from harmony.engines.tape.layout import NOBODY, RowMap, place_of, row_ids


def part(op: Op) -> Claims:
    """``slice``, ``select``, ``split``, ``unbind``: a part of one input along a dimension."""
    shape, place = op.input, op.place
    dim = signed(op.option("dim")) % len(shape)
    removed = len(op.shape) < len(shape)
    axis = place.axis + (removed and place.axis >= dim)
    if removed or axis != dim:
        return [at(place, axis)]
    ids = torch.full((shape[dim],), NOBODY, device="cpu")
    ids[_rows_of_part(op, dim)] = row_ids(place, op.shape[dim], op.size)
    return [place_of(dim, ids, op.size)]


def _rows_of_part(op: Op, dim: int) -> slice:
    if "Slice" in op.node.name():
        return slice(signed(op.option("start")), signed(op.option("end")), op.option("step"))
    start = sum(shape[dim] for shape in op.outputs[: op.number])
    return slice(start, start + op.shape[dim])


def concatenated(op: Op) -> Claims:
    """``cat``."""
    dim, axis = signed(op.option("dim")) % len(op.shape), op.place.axis
    if dim != axis:
        return [None if shape is None else op.place for shape in op.inputs]
    lengths = [0 if shape is None else shape[dim] for shape in op.inputs]
    missing = [n for n, shape in enumerate(op.inputs) if shape is None]
    if len(missing) > 1:  # their lengths are not known
        return [Mark.UNKNOWN] * len(lengths)
    for n in missing:
        lengths[n] = op.shape[dim] - sum(lengths)
    pieces = torch.split(row_ids(op.place, op.shape[dim], op.size), lengths)
    return [
        None if shape is None else place_of(dim, ids, op.size) for shape, ids in zip(op.inputs, pieces, strict=True)
    ]


def stacked(op: Op) -> Claims:
    """``stack``."""
    dim, axis = signed(op.option("dim")) % len(op.shape), op.place.axis
    if dim != axis:
        return [None if shape is None else at(op.place, axis - (axis > dim)) for shape in op.inputs]
    ids = row_ids(op.place, op.shape[dim], op.size)
    return [
        None if shape is None else RowMap(0, ids[n].expand(shape[0]), op.size) if shape else Mark.UNKNOWN
        for n, shape in enumerate(op.inputs)
    ]


def padded(op: Op) -> Claims:
    """``pad`` by constants."""
    shape = op.input
    pad, axis = op.option("pad"), op.place.axis
    number = len(shape) - 1 - axis
    if 2 * number >= len(pad) or not any(pad[2 * number : 2 * number + 2]):
        return [op.place]
    return [Mark.UNKNOWN]


RULES = {
    "Cat": concatenated,
    "ConstantPadNd": padded,
    "Stack": stacked,
    **dict.fromkeys(
        ["Slice", "Select", "Split", "SplitWithSizes", "UnsafeSplit", "UnsafeSplitWithSizes", "Unbind"], part
    ),
}
