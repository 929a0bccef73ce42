"""Whether the samples are where they seem to be: ops that move rows by the data can change that from batch to batch."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harmony.engines.tape.errors import UnsupportedError
from harmony.engines.tape.graph import Graph, Output, signed
from harmony.engines.tape.layout import Layout

_BY_INDEX = {"IndexBackward0", "IndexSelectBackward0"}
_BY_DATA = _BY_INDEX | {
    f"{op}Backward{overload}"
    for op in (
        "Cummax", "Cummin", "Embedding", "EmbeddingBag", "Gather", "IndexAdd", "IndexCopy", "IndexPut", "IndexPutImpl",
        "IndexReduce", "MaskedScatter", "MaskedSelect", "Put", "Scatter", "ScatterAdd", "ScatterReduce", "Sort", "Take",
        "Topk",
    )
    for overload in range(3)
} | {"torch::autograd::CopySlices"}  # fmt: skip


class Move(NamedTuple):
    """An op that picks rows by index tensors, across samples as far as one can see."""

    node: int
    source: Layout
    picked: Layout


def movers(graph: Graph, shared: Sequence[bool]) -> list[int]:
    """Ops on samples that move entries by the data."""
    return [
        node
        for node, name in enumerate(graph.names)
        if name in _BY_DATA and any(s is not None and not shared[s[0]] for s in graph.inputs[node])
    ]


def sort_out(
    graph: Graph, nodes: Sequence[int], layouts: dict[Output, Layout], shared: Sequence[bool]
) -> tuple[list[Move], bool]:
    """Of ops that move entries by the data: those whose indices have to be looked at, and whether others are left.

    An op that moves entries along another axis than that of the samples is harmless.
    """
    moves, others = [], False
    for node in nodes:
        picked, source = layouts.get((node, 0)), graph.inputs[node][0]
        dim = getattr(graph.nodes[node], "_saved_dim", None)
        if picked is not None and dim is not None:
            rank = max(len(graph.shape((node, 0))), 1)
            if signed(dim) % rank != picked.axis:
                continue
        if graph.names[node].startswith("IndexPut") and _masked_constant(graph, node, shared):
            continue
        from_layout = None if source is None else layouts.get(source)
        if graph.names[node] in _BY_INDEX and picked is not None and from_layout is not None:
            moves.append(Move(node, from_layout, picked))
        else:
            others = True
    return moves, others


def _masked_constant(graph: Graph, node: int, shared: Sequence[bool]) -> bool:
    """``self[mask] = value`` with the same value for all: every row stays where it is."""
    value = graph.inputs[node][1]
    indices = graph.nodes[node]._saved_indices  # type: ignore[attr-defined]
    return (value is None or shared[value[0]]) and len(indices) == 1 and indices[0].dtype == torch.bool


def check_moves(graph: Graph, moves: Sequence[Move], size: int) -> None:
    """Raise an UnsupportedError where indices carry rows from one sample to the place of another."""
    if moves and not bool(torch.stack([_keeps_order(graph, move, size) for move in moves]).all()):
        raise UnsupportedError("the data decide the order of the samples in it: rows are sorted or packed by indices")


def _keeps_order(graph: Graph, move: Move, size: int) -> Tensor:
    node: Any = graph.nodes[move.node]
    source = graph.inputs[move.node][0]
    assert source is not None
    shape, axis = graph.shape(source), move.source.axis
    if graph.names[move.node] == "IndexSelectBackward0":
        indices: list[Tensor | None] = [*[None] * axis, node._saved_index]
    else:
        indices = _expanded(node._saved_indices)
    used = [i for i in indices if i is not None]
    device = used[0].device
    if axis >= len(indices) or indices[axis] is None:
        return torch.ones((), dtype=torch.bool, device=device)
    picked_rows = indices[axis]
    assert picked_rows is not None
    block = sum(used, torch.zeros((), dtype=torch.long, device=device)).shape  # what they broadcast to
    places = [n for n, i in enumerate(indices) if i is not None]
    first = places[0] if places == list(range(places[0], places[-1] + 1)) else 0
    within = move.picked.axis - first
    if not 0 <= within < len(block):
        return torch.zeros((), dtype=torch.bool, device=device)
    found = picked_rows % shape[axis] // move.source.inner % size
    places_of = torch.arange(block[within], device=device) // move.picked.inner % size
    expected = places_of.view([-1 if n == within else 1 for n in range(len(block))])
    return (found.expand(block) == expected).all()


def _expanded(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Boolean masks as the index tensors they stand for."""
    found: list[Tensor | None] = []
    for i in indices:
        found += list(i.nonzero(as_tuple=True)) if i is not None and i.dtype in (torch.bool, torch.uint8) else [i]
    return found


def verify(graph: Graph, leaves: Sequence[Tensor], layouts: dict[Output, Layout], size: int) -> None:
    """Raise an UnsupportedError unless every row depends on the sample in whose place it stands.

    NaN is sent back from half of the samples at a time, those whose number has a certain bit, then from the other half:
    two backward passes for each bit.
    """
    outputs = list(layouts)
    numbers = torch.arange(size, device=leaves[0].device)
    wrong: list[Tensor] = []
    for bit, value in itertools.product(range((size - 1).bit_length()), (0, 1)):
        chosen = (numbers >> bit) % 2 == value
        cotangents = [torch.zeros_like(leaf) for leaf in leaves]
        for cotangent in cotangents:
            cotangent[chosen] = torch.nan
        with torch.autograd.set_detect_anomaly(False):
            grads = torch.autograd.grad(
                list(leaves), [graph.edge(o) for o in outputs], cotangents, retain_graph=True, allow_unused=True
            )
        for output, grad in zip(outputs, grads, strict=True):
            if grad is not None:
                axis, outer, inner = layouts[output]
                others = [a for a in range(grad.ndim) if a != axis]
                reached = grad.isnan().any(others) if others else grad.isnan()
                expected = chosen.view(1, -1, 1).expand(outer, -1, inner).reshape(-1)
                wrong.append((reached & ~expected).any())
    if wrong and bool(torch.stack(wrong).any()):
        raise UnsupportedError("rows stand in the places of other samples: they are moved between samples, by the data")
