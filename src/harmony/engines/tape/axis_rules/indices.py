"""Rows that are picked, or written, by index tensors."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from harmony.engines.tape.axis_rules.op import Claims, Mark, Op, State
from harmony.engines.tape.axis_rules.places import SEVERAL, aligned, at, place_of_entries
from harmony.engines.tape.graph import signed
from harmony.engines.tape.layout import NOBODY, Place, row_ids


def gathered(op: Op) -> Claims:
    """``gather``, ``sort``, ``topk``, ``scatter_add`` and the like, along other axes than that of the samples."""
    dim, axis = signed(op.option("dim")) % max(len(op.shape), 1), op.place.axis
    claims: list[State | None] = []
    for shape in op.inputs:
        if shape is None:
            claims.append(None)
        elif dim != axis and len(shape) == len(op.shape) and shape[axis] == op.shape[axis]:
            claims.append(op.place)
        else:
            claims.append(Mark.UNKNOWN)
    return claims


class Index(NamedTuple):
    """Index tensors of a tensor with n axes.

    Attributes:
        tensors: One for each axis that is indexed; masks as the indices they stand for.
        dims: These axes.
        block: The shape the index tensors broadcast to, which takes the place of the axes.
        first: Where it stands in the result.
        rest: The other axes.
    """

    tensors: list[Tensor]
    dims: list[int]
    block: torch.Size
    first: int
    rest: list[int]

    @classmethod
    def of(cls, op: Op, ndim: int) -> "Index":
        """The index tensors that autograd has saved with an op."""
        expanded: list[Tensor | None] = []
        for index in op.option("indices"):
            masked = index is not None and index.dtype in (torch.bool, torch.uint8)
            expanded += list(index.nonzero(as_tuple=True)) if masked else [index]
        dims = [d for d, index in enumerate(expanded) if index is not None]
        tensors = torch.broadcast_tensors(*(index for index in expanded if index is not None))  # type: ignore[no-untyped-call]
        together = dims == list(range(dims[0], dims[-1] + 1))
        rest = [d for d in range(ndim) if d not in dims]
        return cls(list(tensors), dims, tensors[0].shape, dims[0] if together else 0, rest)

    def outer_axis(self, axis: int) -> int:
        """The axis of the indexed tensor that an axis of the result, outside of the block, stands for."""
        return self.rest[axis - (len(self.block) if axis >= self.first else 0)]


def indexed(op: Op) -> Claims:
    """``x[indices]``: rows picked by index tensors, or by masks."""
    shape, axis = op.input, op.place.axis
    index = Index.of(op, len(shape))
    within = axis - index.first
    if not 0 <= within < len(index.block):
        return [at(op.place, index.outer_axis(axis))]
    device = index.tensors[0].device
    ids = row_ids(op.place, op.shape[axis], op.size).to(device)
    ids = ids.view([-1 if n == within else 1 for n in range(len(index.block))]).expand(index.block)
    sizes = [shape[d] for d in index.dims]
    places = torch.zeros(index.block, dtype=torch.int64, device=device)
    for tensor, n in zip(index.tensors, sizes, strict=True):
        places = places * n + tensor % n
    entries = _owners(places.reshape(-1), ids.reshape(-1), math.prod(sizes)).view(sizes)
    return [_of_table(place_of_entries(entries, op.size), index.dims)]


def _of_table(state: State | None, dims: Sequence[int]) -> State | None:
    """A table of which several samples read one entry is shared by all."""
    if isinstance(state, Place):
        return at(state, dims[state.axis])
    return Mark.COMMON if state is Mark.MIXED else state


def _owners(places: Tensor, ids: Tensor, entries: int) -> Tensor:
    """Number of the sample (entries,) that reaches each entry, given where each row (n,) goes and whose it is."""
    places, ids = places[ids >= 0], ids[ids >= 0]
    lowest = ids.new_full((entries,), torch.iinfo(ids.dtype).max).scatter_reduce(0, places, ids, "amin")
    highest = ids.new_full((entries,), NOBODY).scatter_reduce(0, places, ids, "amax")
    return torch.where(highest == NOBODY, NOBODY, torch.where(lowest == highest, highest, SEVERAL))


def index_selected(op: Op) -> Claims:
    """``index_select``."""
    shape = op.input
    dim = signed(op.option("dim")) % len(shape)
    if dim != op.place.axis:
        return [op.place]
    index: Tensor = op.option("index")
    ids = row_ids(op.place, op.shape[dim], op.size).to(index.device)
    return [_of_table(place_of_entries(_owners(index, ids, shape[dim]), op.size), [dim])]


def index_put(op: Op) -> Claims:
    """``x[indices] = values``: other rows keep their place, the values belong to whose rows they are written to."""
    values, axis = op.inputs[1], op.place.axis
    own = None if op.inputs[0] is None else op.place
    if values is None:
        return [own, None]
    index = Index.of(op, len(op.shape))
    first, block = index.first, index.block
    before, after = index.rest[:first], index.rest[first:]
    written = [*(op.shape[d] for d in before), *block, *(op.shape[d] for d in after)]
    state: State | None
    if axis in index.rest:
        number = index.rest.index(axis)
        state = at(op.place, number + (len(block) if number >= first else 0))
    else:
        ids = row_ids(op.place, op.shape[axis], op.size).to(index.tensors[0].device)
        state = place_of_entries(ids[index.tensors[index.dims.index(axis)]], op.size)
        state = at(state, first + state.axis) if isinstance(state, Place) else state
    return [own, aligned(state, written, values) if isinstance(state, Place) else state]


def index_added(op: Op) -> Claims:
    """``index_add``, ``index_copy``: rows added to, or written over, those that an index tensor names."""
    dim, axis = signed(op.option("dim")) % len(op.shape), op.place.axis
    own, source = (None if shape is None else op.place for shape in op.inputs)
    if source is None or dim != axis:
        return [own, source]
    index: Tensor = op.option("index")
    ids = row_ids(op.place, op.shape[dim], op.size).to(index.device)
    state = place_of_entries(ids[index.reshape(-1)], op.size)
    return [own, at(state, dim) if isinstance(state, Place) else state]


RULES = {
    "Index": indexed,
    "IndexSelect": index_selected,
    **dict.fromkeys(["Gather", "ScatterAdd", "Scatter", "ScatterReduce", "Sort", "Topk"], gathered),
    **dict.fromkeys(["IndexAdd", "IndexCopy", "IndexReduce"], index_added),
    **dict.fromkeys(["IndexPut", "IndexPutImpl"], index_put),
}
BY_DATA = {"Index", "IndexAdd", "IndexCopy", "IndexPut", "IndexPutImpl", "IndexReduce", "IndexSelect"}
"""Ops whose rule reads index tensors: what it tells holds for one batch."""
