"""Shared tensors that ops use, and the way from their gradients to those of the parameters they are made of."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from harmony.engines.tape.errors import UnsupportedError
from harmony.engines.tape.grad_rules import closed_form
from harmony.engines.tape.graph import Graph, Output, dtypes, is_complex, signed
from harmony.engines.tape.param_use import MatmulUse, OpaqueUse, ParamUse, Site, batched_vjp
from harmony.engines.tape.sample_axis import SampleAxis


class ParamTensor(NamedTuple):
    """A shared tensor: a parameter, its transpose or cast, or any function of parameters alone.

    Attributes:
        source: Its output in the graph.
        edge: The same, for autograd.
        shape: Its shape.
        params: The parameters it depends on.
        uses: The ops that use it, each with the outputs whose gradients it needs.
        moves: Where it is one parameter, rearranged: maps from gradients (g, *shape) to the parameter's; else None.
        flat: Whether the entries stand in the parameter's order.
        transposed: Whether it is the plain transpose of the parameter.
    """

    source: Output
    edge: GradientEdge
    shape: torch.Size
    params: list[int]
    uses: list[tuple[ParamUse, list[Output]]]
    moves: list[Callable[[Tensor], Tensor]] | None
    flat: bool
    transposed: bool

    def pull(self, grads: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
        """Gradients (g, *shape) of the target -> those of its parameters, (g, *parameter shape)."""
        if self.moves is not None:
            for move in self.moves:
                grads = move(grads)
            return [grads]
        return batched_vjp([self.edge], [leaves[p] for p in self.params], [grads])

    @property
    def dtype(self) -> torch.dtype:
        """Of its entries."""
        return dtypes(self.edge.node)[self.edge.output_nr]

    @property
    def is_complex(self) -> bool:
        """Whether its entries are complex numbers."""
        return is_complex(self.edge.node, self.edge.output_nr)

    def direct(self, use: ParamUse) -> bool:
        """Whether the use's matrix product can be written straight into the parameter's gradient."""
        return (
            (self.flat or self.transposed)
            and isinstance(use, MatmulUse)
            and use.views
            and use.sizes[0] == 1
            and not (self.transposed and len(self.shape) != 2)
        )


def find_param_tensors(graph: Graph, places: SampleAxis, leaves: list[Tensor]) -> list[ParamTensor]:
    """The shared tensors that are made of parameters, and all their uses."""
    index = {leaf: i for i, leaf in enumerate(leaves)}
    sites: dict[Output, dict[int, list[int]]] = {}
    for node, slot in places.uses(graph):
        source = graph.inputs[node][slot]
        assert source is not None
        sites.setdefault(source, {}).setdefault(node, []).append(slot)

    passed = _passed_on(places)
    targets = []
    for source, by_node in sites.items():
        params = _params_behind(graph, source, index)
        if not params:
            continue
        moves, flat, transposed = _rearrangement(graph, source)
        uses = [
            use for node, slots in by_node.items() for use in _uses_at(graph, places, source, node, slots, passed[node])
        ]
        targets.append(
            ParamTensor(source, graph.edge(source), graph.shape(source), params, uses, moves, flat, transposed)
        )
    return targets


def _uses_at(
    graph: Graph, places: SampleAxis, source: Output, node: int, slots: list[int], outputs: list[int]
) -> list[tuple[ParamUse, list[Output]]]:
    """The uses of one shared tensor by one op: one for each slot it feeds, by the op's rule, or one for all of them."""
    layouts = [places.layouts[node, number] for number in outputs]
    found: list[tuple[ParamUse, list[Output]]] = []
    for slot in slots:
        site = Site(graph.nodes[node], slot, layouts[0], graph.shape((node, outputs[0])), graph.shape(source))
        use = closed_form(site) if outputs == [0] else None
        if use is None:
            others = [s for n, s in enumerate(graph.inputs[node]) if s is not None and n not in slots]
            if _reaches(graph, others, source[0]):
                raise UnsupportedError(
                    f"{graph.names[node]} has no closed form and uses a parameter that its other inputs depend on too: "
                    "its own backward would count it twice"
                )
            return [(OpaqueUse(site, layouts, outputs, graph.edge(source)), [(node, number) for number in outputs])]
        found.append((use, [(node, 0)]))
    return found


def _reaches(graph: Graph, outputs: list[Output], wanted: int) -> bool:
    """Whether a node lies behind some outputs."""
    stack, seen = [node for node, _ in outputs], {node for node, _ in outputs}
    while stack:
        for source in graph.inputs[stack.pop()]:
            if source is not None and source[0] not in seen:
                seen.add(source[0])
                stack.append(source[0])
    return wanted in seen


def _passed_on(places: SampleAxis) -> dict[int, list[int]]:
    """For each op that uses something shared, its outputs that pass gradients on."""
    outputs: dict[int, list[int]] = {}
    for node, number in sorted(places.layouts):
        outputs.setdefault(node, []).append(number)
    return outputs


def _params_behind(graph: Graph, source: Output, index: dict[Tensor, int]) -> list[int]:
    stack, seen, found = [source[0]], {source[0]}, set()
    while stack:
        node = stack.pop()
        leaf = graph.parameter(node)
        if leaf is not None and leaf in index:
            found.add(index[leaf])
        for output in graph.inputs[node]:
            if output is not None and output[0] not in seen:
                seen.add(output[0])
                stack.append(output[0])
    return sorted(found)


def _rearrangement(graph: Graph, source: Output) -> tuple[list[Callable[[Tensor], Tensor]] | None, bool, bool]:
    """The maps back to the one parameter behind a target, if it is only rearranged on the way."""
    moves: list[Callable[[Tensor], Tensor]] = []
    flips, reshapes, others = 0, 0, 0
    node = source[0]
    if is_complex(graph.nodes[node], source[1]):  # a real parameter gets the real part: that is autograd's to take
        return None, False, False
    while graph.parameter(node) is None:
        name, parents = graph.names[node], graph.inputs[node]
        if name not in _MOVES or len(parents) != 1 or parents[0] is None:
            return None, False, False
        moves.append(_MOVES[name](graph.nodes[node], graph.shape(parents[0])))
        flips += name == "TBackward0"
        others += name in ("TransposeBackward0", "PermuteBackward0")
        reshapes += name not in _IN_PLACE
        node = parents[0][0]
    # Reshapes keep the order of the entries, transposes of matrices cancel in pairs; mixed, they are neither.
    flat = others == 0 and (flips == 0 or (flips % 2 == 0 and reshapes == 0))
    return moves, flat, others == 0 and flips % 2 == 1 and reshapes == 0


def _unpermute(node: Any, shape: torch.Size) -> Callable[[Tensor], Tensor]:
    dims = [signed(d) % len(shape) for d in node._saved_dims]
    inverse = [0, *(1 + dims.index(axis) for axis in range(len(shape)))]
    return lambda x: x.permute(inverse)


def _untranspose(node: Any, shape: torch.Size) -> Callable[[Tensor], Tensor]:
    first, second = (1 + signed(d) % len(shape) for d in (node._saved_dim0, node._saved_dim1))
    return lambda x: x.transpose(first, second)


def _reshape(node: Any, shape: torch.Size) -> Callable[[Tensor], Tensor]:
    return lambda x: x.reshape(len(x), *shape)


def _flip(node: Any, shape: torch.Size) -> Callable[[Tensor], Tensor]:
    return lambda x: x.mT if len(shape) == 2 else x


def _same(node: Any, shape: torch.Size) -> Callable[[Tensor], Tensor]:
    return lambda x: x


_IN_PLACE = {"ToCopyBackward0": _same, "CloneBackward0": _same, "AliasBackward0": _same, "TBackward0": _flip}
_MOVES = _IN_PLACE | {
    "TransposeBackward0": _untranspose,
    "PermuteBackward0": _unpermute,
    "ViewBackward0": _reshape,
    "UnsafeViewBackward0": _reshape,
    "ReshapeAliasBackward0": _reshape,
    "UnsqueezeBackward0": _reshape,
    "SqueezeBackward0": _reshape,
    "SqueezeBackward1": _reshape,
}
