"""Ops that show the same entries in another shape or order of axes, parts of a tensor, and tensors put together."""

import math
from collections.abc import Callable, Sequence

import torch

from harmony.engines.tape import autograd_fields as fields
from harmony.engines.tape.layout import NOBODY, Layout, Mark, RowMap, State, on_axis, place_of_rows, state_of_entries
from harmony.engines.tape.site import Site

Rule = Callable[[Site], State | None]


def reshaped(site: Site) -> State | None:
    """A view keeps the order of all entries."""
    place = site.place
    if isinstance(place, RowMap):
        return _reshaped_rows(place, site.output, site.input)
    before = math.prod(site.output[: place.axis]) * place.outer
    after = math.prod(site.output[place.axis + 1 :]) * place.inner
    for axis, entries in enumerate(site.input):
        outer, rest_before = divmod(before, math.prod(site.input[:axis]))
        inner, rest_after = divmod(after, math.prod(site.input[axis + 1 :]))
        if not rest_before and not rest_after and outer * site.size * inner == entries:
            return Layout(axis, outer, inner)
    return Mark.UNKNOWN


def _reshaped_rows(place: RowMap, output: Sequence[int], shape: Sequence[int]) -> State | None:
    last = len(output)
    while last > place.axis + 1 and len(shape) and output[last - 1] == shape[-1]:  # what both have in common
        last, shape = last - 1, shape[:-1]
    entries = place.ids.view([-1 if axis == place.axis else 1 for axis in range(last)]).expand(output[:last])
    return state_of_entries(entries.reshape(shape), place.size)


def transposed(site: Site) -> State:
    dims = site.dims("dim0") + site.dims("dim1")
    axis = site.place.axis
    return on_axis(site.place, dims[1 - dims.index(axis)] if axis in dims else axis)


def part(site: Site) -> State | None:
    """``slice``, ``select``, ``split``, ``unbind``: a part of the input along a dimension."""
    dim = site.dim(len(site.input))
    removed = len(site.output) < len(site.input)
    axis = site.place.axis + (removed and site.place.axis >= dim)
    if removed or axis != dim:
        return on_axis(site.place, axis)
    ids = torch.full((site.input[dim],), NOBODY, device="cpu")
    ids[_rows_of_part(site, dim)] = site.ids
    return place_of_rows(dim, ids, site.size)


def _rows_of_part(site: Site, dim: int) -> slice:
    if "Slice" in site.node.name():
        return slice(fields.signed(site.saved("start")), fields.signed(site.saved("end")), site.saved("step"))
    start = sum(shape[dim] for shape in site.outputs[: site.number])
    return slice(start, start + site.output[dim])


def concatenated(site: Site) -> State | None:
    dim = site.dim()
    if dim != site.place.axis:
        return site.place
    lengths = [0 if shape is None else shape[dim] for shape in site.inputs]
    if site.inputs.count(None) > 1:  # their lengths are not known
        return Mark.UNKNOWN
    if None in site.inputs:
        lengths[site.inputs.index(None)] = site.output[dim] - sum(lengths)
    start = sum(lengths[: site.slot])
    return place_of_rows(dim, site.ids[start : start + lengths[site.slot]], site.size)


def stacked(site: Site) -> State:
    dim, axis = site.dim(), site.place.axis
    if dim != axis:
        return on_axis(site.place, axis - (axis > dim))
    return RowMap(0, site.ids[site.slot].expand(site.input[0]), site.size) if site.input else Mark.UNKNOWN


_PARTS = "Slice Select Split SplitWithSizes UnsafeSplit UnsafeSplitWithSizes Unbind"
RULES: dict[str, Rule] = {
    "Cat": concatenated,
    "Permute": lambda site: on_axis(site.place, site.dims("dims")[site.place.axis]),
    "Stack": stacked,
    "T": lambda site: on_axis(site.place, len(site.output) - 1 - site.place.axis),
    "Transpose": transposed,
    **dict.fromkeys(["ViewAsComplex", "ViewAsReal"], lambda site: site.place),
    **dict.fromkeys(["View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze"], reshaped),
    **dict.fromkeys(_PARTS.split(), part),
}
