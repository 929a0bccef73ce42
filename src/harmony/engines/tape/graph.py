"""The autograd graph behind a run of the encoder, as plain lists, and a signature to compare runs by."""

import hashlib
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from harmony.engines.errors import UnsupportedError
from harmony.engines.paths import Paths, collect
from harmony.engines.tape import autograd_fields as fields
from harmony.engines.tape.layout import Place
from harmony.engines.tape.site import Site

Output = tuple[int, int]
"""An output of an op: the index of its node in the graph, and which of the op's outputs."""


class Graph(NamedTuple):
    """Nodes in the order of a walk from the outputs towards the parameters; a node stands for an op of the forward."""

    nodes: list[Node]
    names: list[str]  # such as AddmmBackward0
    inputs: list[list[Output | None]]  # of each differentiable input, the output it comes from; None without a gradient
    shapes: list[list[torch.Size]]  # of the outputs of each op
    dtypes: list[list[torch.dtype]]  # likewise
    recomputed: list[dict[str, int]]  # of each op, what checkpointing computes again, with the number of the region
    read: dict[int, dict[str, Any]]  # what was read of the tensors saved with an op, by its number

    def find(self, tensors: Iterable[Tensor]) -> list[Output]:
        """The outputs that some tensors are."""
        index = {node: i for i, node in enumerate(self.nodes)}
        return [(index[tensor.grad_fn], tensor.output_nr) for tensor in tensors if tensor.grad_fn is not None]

    def edge(self, output: Output) -> GradientEdge:
        """The handle by which autograd takes or gives the gradient of an output."""
        return GradientEdge(self.nodes[output[0]], output[1])

    def shape(self, output: Output) -> torch.Size:
        return self.shapes[output[0]][output[1]]

    def sources(self, node: int) -> list[Output]:
        """The outputs that an op's inputs come from, as far as they have a gradient."""
        return [source for source in self.inputs[node] if source is not None]

    def sites(
        self, node: int, places: Mapping[int, Place], size: int, slots: Collection[int] | None = None
    ) -> list[Site]:
        """All pairs of an output, at whose place the samples are known to lie, and an input of an op."""
        inputs = [None if source is None else self.shape(source) for source in self.inputs[node]]
        op, name, shapes, dtypes = self.nodes[node], self.names[node], self.shapes[node], self.dtypes[node]
        device, read = fields.device(op), self.read.setdefault(node, {})
        return [
            Site(name, number, place, shapes, inputs, size, slot, dtypes[number], device, op, read)
            for slot, shape in enumerate(inputs)
            if shape is not None and (slots is None or slot in slots)
            for number, place in places.items()
        ]

    def saved(self, node: int, names: Iterable[str]) -> dict[str, Any]:
        """What autograd has saved with an op, each read once: activation checkpointing computes it again."""
        known = self.read.setdefault(node, {})
        for name in names:
            if name not in known:
                known[name] = fields.saved(self.nodes[node], name)
        return known

    def behind(self, nodes: Iterable[int]) -> list[int]:
        """Some nodes, and all that they depend on: the nearest first."""
        queue = list(dict.fromkeys(nodes))
        seen = set(queue)
        for node in queue:
            for source in self.inputs[node]:
                if source is not None and source[0] not in seen:
                    seen.add(source[0])
                    queue.append(source[0])
        return queue

    def parameters_behind(self, node: int, names: Mapping[Tensor, Any]) -> list[Any]:
        """Names of the parameters that an op depends on: the nearest first."""
        leaves = [fields.leaf(self.nodes[n]) for n in self.behind([node])]
        return [names[leaf] for leaf in leaves if leaf is not None and leaf in names]

    def nearest_parameter(self, node: int, names: Mapping[Tensor, str]) -> str:
        """Name of a parameter that an op depends on."""
        return next(iter(self.parameters_behind(node, names)), "?")

    def paths(self) -> Paths:
        """The leaves, ops and custom functions in it."""
        result = Paths([], set(), [])
        for node in self.nodes:
            collect(node, result)
        return result

    def regions(self) -> list[int | None]:
        """For each node the number of the checkpointed region that it belongs to, as far as its saved tensors tell."""
        numbers: dict[int, int] = {}
        regions = (next(iter(names.values()), None) for names in self.recomputed)
        return [None if region is None else numbers.setdefault(region, len(numbers)) for region in regions]

    def signature(self, params: Mapping[Tensor, int]) -> bytes:
        """What determines where the samples lie in each tensor, and which parameter each leaf is: a digest.

        Topology, shapes, dtypes, the ops' options and what is checkpointed go in, but nothing of the tensors' values.
        """
        leaves = [params.get(leaf, -1) for node in self.nodes if (leaf := fields.leaf(node)) is not None]
        options = [fields.options(node) for node in self.nodes]
        devices = list(map(str, {leaf.device: None for leaf in params}))
        facts = devices, self.names, self.inputs, self.shapes, self.dtypes, options, self.regions(), leaves
        return hashlib.blake2b(repr(facts).encode(), digest_size=16).digest()

    def order(self) -> list[int]:
        """The nodes, each after all that use it."""
        users = [0] * len(self.nodes)
        for node in range(len(self.nodes)):
            for source, _ in self.sources(node):
                users[source] += 1
        ready = [node for node, count in enumerate(users) if not count]
        for node in ready:
            for source, _ in self.sources(node):
                users[source] -= 1
                if not users[source]:
                    ready.append(source)
        return ready

    def made_of_parameters(self, params: Container[Tensor]) -> list[bool]:
        """For each node, whether its outputs are surely made of these parameters alone, whatever the batch."""
        certain = [False] * len(self.nodes)
        for node in reversed(self.order()):
            inputs, op = self.inputs[node], self.nodes[node]
            if not inputs:
                certain[node] = fields.leaf(op) in params
            elif base_name(self.names[node]) not in _BRING_SAMPLES.split() and not fields.is_custom(op):
                known = [source is not None and certain[source[0]] for source in inputs]
                certain[node] = all(known) or (any(known) and self._is_scaled(node))
        return certain

    def _is_scaled(self, node: int) -> bool:
        """Whether an op multiplies or divides its one input by a number."""
        if base_name(self.names[node]) not in ("Mul", "Div") or len(self.sources(node)) != 1:
            return False  # before a tensor is read, which activation checkpointing would have to compute
        other = fields.saved_or_none(self.nodes[node], "other")
        return isinstance(other, Tensor) and other.ndim == 0


# Ops that may bring the samples in: by tensors that the graph does not show, or by copies.
_BRING_SAMPLES = (
    "CopySlices Embedding EmbeddingBag Expand Gather Index IndexAdd IndexCopy IndexPut IndexReduce IndexSelect "
    "MaskedFill MaskedScatter MaskedSelect Put Repeat Scatter ScatterAdd ScatterReduce SegmentReduce Take Where"
)


def base_name(name: str) -> str:
    """Name of a node without its namespace, ``Backward`` and number: ``Addmm`` of ``AddmmBackward0``."""
    return name.rpartition("::")[2].partition("Backward")[0]


def made_of_parameters(x: Tensor, params: Container[Tensor]) -> bool:
    """Whether a tensor is surely made of parameters alone."""
    if x.grad_fn is None:
        return x in params
    return not fields.missing_fields() and walk([x]).made_of_parameters(params)[0]


def walk(outputs: Sequence[Tensor]) -> Graph:
    """Collect the graph behind tensors that require a gradient."""
    fields.require_fields()
    index: dict[Node, int] = {}
    graph = Graph([], [], [], [], [], [], {})

    def visit(node: Node) -> int:
        if node not in index:
            index[node] = len(graph.nodes)
            graph.nodes.append(node)
            graph.names.append(node.name())
            shapes, dtypes = fields.shapes_and_dtypes(node)
            graph.shapes.append(shapes)
            graph.dtypes.append(dtypes)
            graph.recomputed.append(fields.recomputed(node))
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
