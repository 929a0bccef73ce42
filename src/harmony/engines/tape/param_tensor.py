"""Tensors made of parameters, the ops that use them, and the way from their gradients to those of the parameters."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node

from harmony.engines.errors import UnsupportedError
from harmony.engines.tape import autograd_fields as fields
from harmony.engines.tape.grad_rules import closed_form
from harmony.engines.tape.graph import Graph, Output, base_name
from harmony.engines.tape.param_use import MatmulUse, OpaqueUse, ParamUse, batched_vjp
from harmony.engines.tape.recomputed import reading
from harmony.engines.tape.sample_axis import SampleAxis

Move = Callable[[Tensor], Tensor]


class ParamTensor(NamedTuple):
    """A tensor that is common to all samples: a parameter, its transpose or cast, or any function of parameters."""

    source: Output
    shape: torch.Size
    dtype: torch.dtype
    params: list[int]  # the parameters it depends on
    uses: list[tuple[ParamUse, list[Output]]]  # each with the outputs whose gradients it needs
    moves: list[Move] | None  # of a rearranged parameter: maps from gradients (g, *shape) to the parameter's
    flat: bool  # the entries stand in the parameter's order
    transposed: bool  # it is the plain transpose of the parameter

    def pull(self, graph: Graph, grads: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
        """Gradients (g, *shape) of the tensor -> those of its parameters, (g, *parameter shape)."""
        if self.moves is None:
            return batched_vjp([graph.edge(self.source)], [leaves[p] for p in self.params], [grads])
        for move in self.moves:
            grads = move(grads)
        return [grads]

    @property
    def is_product(self) -> bool:
        """Whether all uses are matrix products that give the parameter's gradient as it stands."""
        products = all(isinstance(use, MatmulUse) and not use.table for use, _ in self.uses)
        return products and (self.flat or self.transposed) and not self.dtype.is_complex


def param_tensors(graph: Graph, places: SampleAxis, pieces: Sequence[int], leaves: list[Tensor]) -> list[ParamTensor]:
    """The common tensors that are made of parameters, and all their uses: read one piece of the graph at a time."""
    tensors: dict[Output, ParamTensor] = {}
    for number in range(1 + max(pieces)):
        part = places._replace(uses=[(node, slot) for node, slot in places.uses if pieces[node] == number])
        for tensor in reading(graph, functools.partial(_used_tensors, places=part, leaves=leaves)):
            known = tensors.get(tensor.source)
            tensors[tensor.source] = tensor if known is None else known._replace(uses=[*known.uses, *tensor.uses])
    return list(tensors.values())


def _used_tensors(graph: Graph, places: SampleAxis, leaves: list[Tensor]) -> list[ParamTensor]:
    index = {leaf: i for i, leaf in enumerate(leaves)}
    slots_of: dict[Output, dict[int, list[int]]] = {}
    for node, slot in places.uses:
        source = graph.inputs[node][slot]
        assert source is not None
        slots_of.setdefault(source, {}).setdefault(node, []).append(slot)
    tensors = []
    for source, by_node in slots_of.items():
        params = sorted(graph.parameters_behind(source[0], index))
        if params:
            uses = [use for node, slots in by_node.items() for use in _uses(graph, places, source, node, slots)]
            shape, dtype = graph.shape(source), graph.dtypes[source[0]][source[1]]
            tensors.append(ParamTensor(source, shape, dtype, params, uses, *_rearrangement(graph, source)))
    return tensors


def _uses(
    graph: Graph, places: SampleAxis, source: Output, node: int, slots: list[int]
) -> list[tuple[ParamUse, list[Output]]]:
    """The uses of one tensor by one op: one for each slot it feeds, by the op's rule, or one for all of them."""
    outputs = {n: places.layouts[node, n] for n in range(len(graph.shapes[node])) if (node, n) in places.layouts}
    first = min(outputs)
    uses: list[tuple[ParamUse, list[Output]]] = []
    for site in graph.sites(node, {first: outputs[first]}, places.size, slots):
        use = closed_form(site) if list(outputs) == [0] else None
        if use is None:
            besides = [s[0] for n, s in enumerate(graph.inputs[node]) if s is not None and n not in slots]
            if source[0] in graph.behind(besides):
                raise UnsupportedError(
                    f"{graph.names[node]} has no closed form and uses a parameter that its other inputs depend on too: "
                    "its own backward would count it twice"
                )
            return [(OpaqueUse(site.geometry, outputs, source), [(node, n) for n in outputs])]
        uses.append((use, [(node, 0)]))
    return uses


def _rearrangement(graph: Graph, source: Output) -> tuple[list[Move] | None, bool, bool]:
    """Of a tensor that is one parameter, rearranged: the maps back, whether it is flat, and whether transposed."""
    moves: list[Move] = []
    names: list[str] = []
    node = source[0]
    if graph.dtypes[node][source[1]].is_complex:  # autograd takes the real part for a real parameter
        return None, False, False
    while fields.leaf(graph.nodes[node]) is None:
        name, inputs = base_name(graph.names[node]), graph.inputs[node]
        if name not in _REARRANGEMENTS or len(inputs) != 1 or inputs[0] is None:
            return None, False, False
        shape = graph.shape(inputs[0])
        if name != "T" or len(shape) == 2:  # else it moves nothing
            moves.append(_move_back(name, graph.nodes[node], shape))
            names.append(name)
        node = inputs[0][0]
    permuted = not {"Transpose", "Permute"}.isdisjoint(names)
    reshaped = not {"T", "Transpose", "Permute", *_COPIES}.issuperset(names)
    odd = names.count("T") % 2 == 1
    # Reshapes keep the order of the entries, transposes of matrices cancel in pairs; mixed, they are neither.
    flat = not permuted and ("T" not in names or not (odd or reshaped))
    return moves, flat, odd and not permuted and not reshaped


_COPIES = {"ToCopy", "Clone", "Alias"}
_REARRANGEMENTS = {"T", "Transpose", "Permute", "View", "UnsafeView", "ReshapeAlias", "Unsqueeze", "Squeeze"} | _COPIES


def _move_back(name: str, node: Node, shape: torch.Size) -> Move:
    """A map from gradients (g, ...) of a rearranged tensor to those (g, *shape) of the tensor before."""
    if name == "T":
        return lambda x: x.mT
    if name == "Transpose":
        first, second = (1 + fields.dim(node, dim, len(shape)) for dim in ("dim0", "dim1"))
        return lambda x: x.transpose(first, second)
    if name == "Permute":
        dims = [fields.signed(d) % len(shape) for d in fields.saved(node, "dims")]
        inverse = [0, *(1 + dims.index(axis) for axis in range(len(shape)))]
        return lambda x: x.permute(inverse)
    return lambda x: x.reshape(len(x), *shape)
