"""Rows that are picked, or written, by index tensors."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from harmony.engines.tape.layout import NOBODY, SEVERAL, Mark, Place, State, aligned, on_axis, state_of_entries
from harmony.engines.tape.site import Site


class Index(NamedTuple):
    """Index tensors of a tensor, on the host; masks are the indices they stand for."""

    tensors: list[Tensor]  # one for each axis that is indexed
    dims: list[int]  # these axes
    first: int  # where the block of axes begins that takes their place
    rest: list[int]  # the other axes

    @property
    def block(self) -> torch.Size:
        """The shape that the index tensors broadcast to."""
        return self.tensors[0].shape


def index_of(site: Site, ndim: int) -> Index:
    """The index tensors that autograd has saved with an op on a tensor with n axes."""
    expanded: list[Tensor | None] = []
    for index in site.saved("indices"):
        masked = index is not None and index.dtype in (torch.bool, torch.uint8)
        expanded += list(index.nonzero(as_tuple=True)) if masked else [index]
    dims = [d for d, index in enumerate(expanded) if index is not None]
    tensors = torch.broadcast_tensors(*(index.cpu() for index in expanded if index is not None))  # type: ignore[no-untyped-call]
    together = dims == list(range(dims[0], dims[-1] + 1))
    return Index(list(tensors), dims, dims[0] if together else 0, [d for d in range(ndim) if d not in dims])


def indexed(site: Site) -> State | None:
    """``x[indices]``: rows picked by index tensors, or by masks."""
    index = index_of(site, len(site.input))
    within, ndim = site.place.axis - index.first, len(index.block)
    if not 0 <= within < ndim:
        return on_axis(site.place, index.rest[site.place.axis - (ndim if within >= 0 else 0)])
    ids = site.ids.view([-1 if n == within else 1 for n in range(ndim)]).expand(index.block)
    sizes = [site.input[d] for d in index.dims]
    entries = torch.zeros(index.block, dtype=torch.int64, device="cpu")
    for tensor, n in zip(index.tensors, sizes, strict=True):
        entries = entries * n + tensor % n
    owners = _owners(entries.reshape(-1), ids.reshape(-1), math.prod(sizes)).view(sizes)
    return _on_axes(_state_of_table(owners, site.size), index.dims)


def index_selected(site: Site) -> State | None:
    dim = site.dim(len(site.input))
    if dim != site.place.axis:
        return site.place
    owners = _owners(site.saved("index").cpu(), site.ids, site.input[dim])
    return _on_axes(_state_of_table(owners, site.size), [dim])


def _owners(entries: Tensor, ids: Tensor, size: int) -> Tensor:
    """The sample (size,) that reaches each entry, given the entry that each row (n,) goes to and whose row it is."""
    entries, ids = entries[ids >= 0], ids[ids >= 0]
    lowest = ids.new_full((size,), torch.iinfo(ids.dtype).max).scatter_reduce(0, entries, ids, "amin")
    highest = ids.new_full((size,), NOBODY).scatter_reduce(0, entries, ids, "amax")
    return torch.where(highest == NOBODY, NOBODY, torch.where(lowest == highest, highest, SEVERAL))


def _state_of_table(owners: Tensor, size: int) -> State | None:
    """A table of which several samples read one entry is common to all."""
    state = state_of_entries(owners, size)
    return Mark.COMMON if state is Mark.MIXED else state


def _on_axes(state: State | None, axes: list[int]) -> State | None:
    """The state of some axes of a tensor as that of the whole."""
    return on_axis(state, axes[state.axis]) if isinstance(state, Place) else state


def index_put(site: Site) -> State | None:
    """``x[indices] = values``: other rows keep their place, the values belong to whose rows they are written to."""
    if site.slot == 0:
        return site.place
    index, axis = index_of(site, len(site.output)), site.place.axis
    first, ndim = index.first, len(index.block)
    written = [site.output[d] for d in index.rest]
    written[first:first] = index.block
    if axis in index.rest:
        number = index.rest.index(axis)
        state: State | None = on_axis(site.place, number + (ndim if number >= first else 0))
    else:
        ids = site.ids[index.tensors[index.dims.index(axis)]]
        state = _on_axes(state_of_entries(ids, site.size), list(range(first, first + ndim)))
    return aligned(state, written, site.input) if isinstance(state, Place) else state


def index_added(site: Site) -> State | None:
    """``index_add``, ``index_copy``: rows added to, or written over, those that an index tensor names."""
    dim = site.dim()
    if site.slot == 0 or dim != site.place.axis:
        return site.place
    ids = site.ids[site.saved("index").cpu().reshape(-1)]
    return _on_axes(state_of_entries(ids, site.size), [dim])


RULES = {
    "Index": indexed,
    "IndexSelect": index_selected,
    **dict.fromkeys(["IndexAdd", "IndexCopy", "IndexReduce"], index_added),
    **dict.fromkeys(["IndexPut", "IndexPutImpl"], index_put),
}
