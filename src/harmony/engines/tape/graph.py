"""The autograd graph behind a run of the encoder, as plain lists, and a signature to compare runs by."""

import functools
from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge, Node

from harmony.engines.paths import Paths, collect
from harmony.engines.tape.errors import UnsupportedError

Output = tuple[int, int]
"""An output of an op: the index of its node in the graph, and which of the op's outputs."""


class Graph(NamedTuple):
    """Nodes in the order of a walk from the outputs towards the parameters.

    Attributes:
        nodes: The backward nodes; a node stands for the op that was run forward.
        names: Their names, such as ``AddmmBackward0``.
        inputs: For each node and each differentiable input of its op, the output it came from; None where the input
            needs no gradient.
        shapes: For each node, the shapes of its op's outputs.
    """

    nodes: list[Node]
    names: list[str]
    inputs: list[list[Output | None]]
    shapes: list[list[torch.Size]]

    def edge(self, output: Output) -> GradientEdge:
        """The handle by which autograd takes or gives the gradient of an output."""
        return GradientEdge(self.nodes[output[0]], output[1])

    def shape(self, output: Output) -> torch.Size:
        """Shape of an output."""
        return self.shapes[output[0]][output[1]]

    def parameter(self, node: int) -> Tensor | None:
        """The leaf tensor that a node stands for, if it is a leaf."""
        return getattr(self.nodes[node], "variable", None)

    def paths(self) -> Paths:
        """The leaves, ops and custom functions in it."""
        result = Paths([], set(), [])
        for node in self.nodes:
            collect(node, result)
        return result

    def signature(self) -> tuple[Any, ...]:
        """What determines where the samples lie in each tensor: topology, shapes and the ops' options."""
        options = tuple(map(_options_of, self.nodes))
        inputs = tuple(map(tuple, self.inputs))
        return tuple(self.names), inputs, tuple(map(tuple, self.shapes)), _hashable(options)

    def order(self) -> list[int]:
        """The nodes, each after all that use it."""
        users = [0] * len(self.nodes)
        for inputs in self.inputs:
            for source in inputs:
                if source is not None:
                    users[source[0]] += 1
        ready = [node for node, count in enumerate(users) if not count]
        for node in ready:
            for source in self.inputs[node]:
                if source is not None:
                    users[source[0]] -= 1
                    if not users[source[0]]:
                        ready.append(source[0])
        return ready

    def _scaled(self, node: int, certain: Sequence[bool]) -> bool:
        """Whether an op multiplies or divides something certain by a number."""
        sources = [s for s in self.inputs[node] if s is not None]
        if base_name(self.names[node]) not in ("Mul", "Div") or len(sources) != 1 or not certain[sources[0][0]]:
            return False
        other = getattr(self.nodes[node], "_saved_other", None)
        return isinstance(other, Tensor) and other.ndim == 0

    def made_of_parameters(self, order: Sequence[int], params: Container[Tensor]) -> list[bool]:
        """For each node, whether its outputs are surely made of these parameters alone, whatever the batch."""
        certain = [False] * len(self.nodes)
        for node in reversed(order):
            inputs = self.inputs[node]
            if not inputs:
                certain[node] = self.parameter(node) in params
            elif base_name(self.names[node]) not in _BRING_SAMPLES and not isinstance(
                self.nodes[node], BackwardCFunction
            ):
                certain[node] = all(s is not None and certain[s[0]] for s in inputs) or self._scaled(node, certain)
        return certain


_BRING_SAMPLES = {
    *("CopySlices", "Embedding", "EmbeddingBag", "Gather", "Index", "IndexAdd", "IndexCopy", "IndexPut", "IndexReduce"),
    *("IndexSelect", "MaskedFill", "MaskedScatter", "MaskedSelect", "Put", "Scatter", "ScatterAdd", "ScatterReduce"),
    *("SegmentReduce", "Take", "Where", "Expand", "Repeat"),
}
"""Ops that may bring the samples in: by tensors that the graph does not show, or by copies."""


def base_name(name: str) -> str:
    """Name of a node without its namespace, ``Backward`` and number: ``Addmm`` of ``AddmmBackward0``."""
    return name.rpartition("::")[2].partition("Backward")[0]


def parameter_behind(graph: Graph, node: int, names: Mapping[Tensor, str]) -> str:
    """Name of a parameter that an op depends on: the nearest."""
    queue, seen = [node], {node}
    for current in queue:
        leaf = graph.parameter(current)
        if leaf is not None and leaf in names:
            return names[leaf]
        for source in graph.inputs[current]:
            if source is not None and source[0] not in seen:
                seen.add(source[0])
                queue.append(source[0])
    return "?"


def made_of_parameters(x: Tensor, params: Container[Tensor]) -> bool:
    """Whether a tensor is surely made of parameters alone."""
    if x.grad_fn is None:
        return x in params
    graph = walk([x])
    return graph.made_of_parameters(graph.order(), params)[0]


def walk(outputs: Sequence[Tensor]) -> Graph:
    """Collect the graph behind tensors that require a gradient."""
    index: dict[Node, int] = {}
    graph = Graph([], [], [], [])

    def visit(node: Node) -> int:
        if node not in index:
            index[node] = len(graph.nodes)
            graph.nodes.append(node)
            graph.names.append(node.name())
            graph.shapes.append(_shapes(node))
            stack.append(node)
        return index[node]

    stack: list[Node] = []
    for output in outputs:
        if output.grad_fn is None:
            raise UnsupportedError("encode returns a parameter itself, which belongs to no sample")
        visit(output.grad_fn)
    inputs: dict[int, list[Output | None]] = {}
    while stack:
        node = stack.pop()
        inputs[index[node]] = [None if n is None else (visit(n), nr) for n, nr in node.next_functions]
    graph.inputs.extend(inputs[i] for i in range(len(graph.nodes)))
    return graph


def _shapes(node: Node) -> list[torch.Size]:
    variable = getattr(node, "variable", None)  # leaves carry the tensor itself
    if variable is not None:
        return [variable.shape]
    try:
        return [torch.Size([int(n) for n in meta.shape]) for meta in node._input_metadata]
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise UnsupportedError(f"{node.name()} gives a nested tensor, whose shape is that of no array") from error


def signed(dim: int) -> int:
    """A dimension as it was given: autograd saves negative ones as large numbers."""
    return dim - 2**64 if dim >= 2**63 else dim


def dtypes(node: Node) -> list[torch.dtype]:
    """Of the outputs of an op, or of a leaf."""
    variable = getattr(node, "variable", None)
    return [variable.dtype] if variable is not None else [meta.dtype for meta in node._input_metadata]


def is_complex(node: Node, number: int = 0) -> bool:
    """Whether an output of an op holds complex numbers."""
    return dtypes(node)[number].is_complex


def _options_of(node: Node) -> tuple[Any, ...]:
    if isinstance(node, BackwardCFunction):  # a custom function: the numbers and names it keeps in its context
        return type(node), *((n, v) for n, v in vars(node).items() if isinstance(v, int | float | str | tuple | list))
    return tuple(getattr(node, name) for name in _options(type(node)))


@functools.cache
def _options(kind: type) -> tuple[str, ...]:
    """Names of the saved attributes that are not tensors: dimensions, sizes, scales."""
    names = dir(kind)
    return tuple(n for n in names if n.startswith("_saved_") and f"_raw{n}" not in names)


def _hashable(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return tuple(_hashable(v) for v in value)
    return value if isinstance(value, int | float | bool | str | type | None) else str(value)
