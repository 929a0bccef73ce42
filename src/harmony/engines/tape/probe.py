"""Find out where the samples lie in each tensor of a graph, by experiment.

A flattened axis ``(b t)`` or ``(t b)`` does not tell which it is, and no table of ops can be complete. So one sample is
encoded twice over, in a batch of its own, and NaN is sent back from the embedding of the first copy, then of the
second: the entries it reaches in a tensor's gradient are those of that copy. What does not change its shape with the
number of samples belongs to the parameters alone. The finding holds for every graph of the same signature, so that a
training loop pays for it once.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harmony.engines.tape.errors import MixedSamplesError, UnsupportedError
from harmony.engines.tape.graph import Graph, Output, walk
from harmony.engines.tape.layout import Layout
from harmony.engines.tape.order import Move, check_moves, movers, sort_out, verify


class Anatomy(NamedTuple):
    """What is known of a graph.

    Attributes:
        shared: For each node, whether its outputs belong to the parameters alone, the same for all samples.
        layouts: Where the samples lie in the outputs of the ops that use something shared.
        moves: Ops that pick rows by indices; whether they keep the order of the samples depends on the batch.
        doubtful: Whether other ops may change it.
    """

    shared: list[bool]
    layouts: dict[Output, Layout]
    moves: list[Move] = []  # noqa: RUF012
    doubtful: bool = False

    def uses(self, graph: Graph) -> list[tuple[int, int]]:
        """The ops that use something shared: node and number of the input."""
        return [
            (node, slot)
            for node, inputs in enumerate(graph.inputs)
            if not self.shared[node]
            for slot, source in enumerate(inputs)
            if source is not None and self.shared[source[0]]
        ]


_KNOWN: OrderedDict[Any, Anatomy] = OrderedDict()
_REMEMBERED = 64
_LOCK = threading.Lock()


Encode = Callable[[int, int], list[Tensor]]


def anatomy(
    graph: Graph, outputs: Sequence[Tensor], size: int, encode_copies: Encode, names: Mapping[Tensor, str]
) -> Anatomy:
    """Learn where the samples lie.

    Args:
        graph: The graph of a run on ``size`` samples.
        outputs: The tracked embedding leaves of this run.
        size: B.
        encode_copies: Runs the encoder on n copies of a sample, given n and the sample's number, and returns the
            tracked embedding leaves, (n, ...).
        names: Names of the parameters.

    Raises:
        MixedSamplesError: An op mixes samples.
        UnsupportedError: The graph itself depends on the samples, or their order does.
    """
    signature = (size, graph.signature())
    with _LOCK:
        known = _KNOWN.get(signature)
    if known is not None:
        found = known
        check_moves(graph, found.moves, size)
        if found.doubtful:
            verify(graph, outputs, found.layouts, size)
        return found
    for sample in sorted({0, size // 2, size - 1}):
        try:
            found = _examine(graph, size, encode_copies, names, sample)
            break
        except (UnsupportedError, MixedSamplesError) as error:  # masked away, say: another sample may tell more
            failed: Exception = error
    else:
        raise failed
    check_moves(graph, found.moves, size)
    verify(graph, outputs, found.layouts, size)
    with _LOCK:
        _KNOWN[signature] = found
        if len(_KNOWN) > _REMEMBERED:
            _KNOWN.popitem(last=False)
    return found


def _examine(graph: Graph, size: int, encode_copies: Encode, names: Mapping[Tensor, str], sample: int) -> Anatomy:
    copies = 2 if size != 2 else 3
    leaves = encode_copies(copies, sample)
    small = walk(leaves)
    if small.topology() != graph.topology():
        raise UnsupportedError(
            f"the autograd graph of encode depends on the samples: {len(graph.nodes)} nodes for {size} samples, "
            f"{len(small.nodes)} for {copies} copies of one (a Python loop over samples, or a branch on data)"
        )
    shared = [a == b for a, b in zip(graph.shapes, small.shapes, strict=True)]
    for node, inputs in enumerate(graph.inputs):
        if shared[node] and any(source is not None and not shared[source[0]] for source in inputs):
            op, parameter = graph.names[node], parameter_behind(graph, node, names)
            raise MixedSamplesError(
                op, op, parameter, tuple(graph.shapes[node][0]), "does not grow with the number of samples"
            )

    users = {node for node, _ in Anatomy(shared, {}).uses(graph)}
    moving = movers(graph, shared)
    around = {(node, 0) for node in moving} | {s for node in moving for s in graph.inputs[node] if s is not None}
    passing = [output for output in _passing(graph, small, leaves) if not shared[output[0]]]
    needed = [output for output in passing if output[0] in users]
    found = _layouts(graph, small, leaves, [o for o in passing if o[0] in users or o in around], size, copies)
    for kind in (_Mixed, _Unknown):
        for output in needed:
            problem = found[output]
            if isinstance(problem, kind):
                op, shape = graph.names[output[0]], tuple(graph.shape(output))
                if kind is _Unknown:
                    raise UnsupportedError(f"{op} of shape {shape}: {problem}")
                culprit = _culprit(graph, small, leaves, size, copies, shared, output)
                raise MixedSamplesError(culprit, op, parameter_behind(graph, output[0], names), shape, str(problem))
    layouts = {o: layout for o, layout in found.items() if isinstance(layout, Layout)}
    moves, doubtful = sort_out(graph, moving, layouts, shared)
    return Anatomy(shared, {o: layouts[o] for o in needed}, moves, doubtful)


def _layouts(
    graph: Graph, small: Graph, leaves: list[Tensor], outputs: list[Output], size: int, copies: int
) -> dict[Output, "Layout | _Mixed | _Unknown"]:
    """Where the samples lie in each output, or what is wrong with it."""
    if not outputs:
        return {}
    reached = [_reached(small, leaves, outputs, copy) for copy in range(copies)]
    found: dict[Output, Layout | _Mixed | _Unknown] = {}
    for number, output in enumerate(outputs):
        try:
            found[output] = infer(graph.shape(output), small.shape(output), size, copies, [r[number] for r in reached])
        except (_Mixed, _Unknown) as error:
            found[output] = error
    return found


def _passing(graph: Graph, small: Graph, leaves: list[Tensor]) -> list[Output]:
    """All outputs that pass gradients on."""
    taken = {source for inputs in graph.inputs for source in inputs if source is not None}
    return sorted(taken | {(_index(small, leaf), leaf.output_nr) for leaf in leaves})


def _culprit(
    graph: Graph, small: Graph, leaves: list[Tensor], size: int, copies: int, shared: list[bool], mixed: Output
) -> str:
    """Name of an op whose outputs keep the samples apart and whose inputs do not, downstream of a mixed output."""
    outputs = [output for output in _passing(graph, small, leaves) if not shared[output[0]]]
    found = _layouts(graph, small, leaves, outputs, size, copies)
    apart = {node for node in range(len(graph.nodes)) if all(
        isinstance(layout, Layout) for output, layout in found.items() if output[0] == node
    )}  # fmt: skip
    queue, seen = [mixed], {mixed}
    for current in queue:
        for node, inputs in enumerate(graph.inputs):
            if current in inputs:
                if node in apart and not shared[node]:
                    return graph.names[node]
                ahead = [o for o in outputs if o[0] == node and o not in seen]
                queue += ahead
                seen |= set(ahead)
    return graph.names[mixed[0]]


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


class _Mixed(Exception):
    pass


class _Unknown(Exception):
    pass


def infer(
    shape: Sequence[int], small: Sequence[int], size: int, copies: int, reached: Sequence[Tensor | None]
) -> Layout:
    """Layout of a tensor, from its shapes with ``size`` and ``copies`` samples and the entries each copy reaches."""
    axes = [axis for axis, (a, b) in enumerate(zip(shape, small, strict=True)) if a != b]
    in_step = [a for a in axes if small[a] % copies == 0 and shape[a] == small[a] // copies * size]
    if len(axes) > 1 and in_step == axes:
        raise _Mixed(f"grows with the number of samples along {len(axes)} axes")
    if len(axes) != 1:
        raise _Unknown(f"its shape depends on the samples along axes {axes}")
    axis = axes[0]
    rows, rest = divmod(small[axis], copies)
    if rest or shape[axis] != rows * size:
        raise _Unknown(f"axis {axis} has {small[axis]} entries for {copies} samples, {shape[axis]} for {size}")
    positions = [_positions(r, axis) for r in reached]
    if any(len(set(a) & set(b)) for i, a in enumerate(positions) for b in positions[:i]):
        raise _Mixed("has entries that several samples depend on")
    fitting = [
        inner
        for inner in range(rows, 0, -1)
        if rows % inner == 0
        and all(position // inner % copies == copy for copy, found in enumerate(positions) for position in found)
    ]
    if not fitting:
        raise _Mixed("holds the samples in an order that is not theirs")
    if len(fitting) > 1:  # the copies are alike: so are the rows of a sample that count
        fitting = [i for i in fitting if len({_of_one_sample(found, i, copies) for found in positions}) == 1]
    if len(fitting) != 1 or not any(positions):
        if rows == 1:
            return Layout(axis, 1, 1)
        raise _Unknown(f"no gradient tells how its {rows} rows a sample are ordered along axis {axis}")
    return Layout(axis, rows // fitting[0], fitting[0])


def _positions(reached: Tensor | None, axis: int) -> list[int]:
    if reached is None:
        return []
    others = [a for a in range(reached.ndim) if a != axis]
    along_axis = reached.any(others) if others else reached  # `any` over no axes is over all of them
    found: list[int] = along_axis.nonzero().flatten().tolist()
    return found


def _of_one_sample(positions: list[int], inner: int, copies: int) -> tuple[int, ...]:
    """The rows within their sample."""
    return tuple(position // (inner * copies) * inner + position % inner for position in positions)


def _index(graph: Graph, leaf: Tensor) -> int:
    assert leaf.grad_fn is not None
    return graph.nodes.index(leaf.grad_fn)


def _reached(graph: Graph, leaves: list[Tensor], outputs: list[Output], copy: int) -> list[Tensor | None]:
    """For each output, the entries of its gradient that a copy's embeddings reach."""
    cotangents = [torch.zeros_like(leaf) for leaf in leaves]
    for cotangent in cotangents:
        cotangent[copy] = torch.nan
    with torch.autograd.set_detect_anomaly(False):
        grads = torch.autograd.grad(
            leaves, [graph.edge(o) for o in outputs], cotangents, retain_graph=True, allow_unused=True
        )
    return [None if g is None else g.isnan() for g in grads]
