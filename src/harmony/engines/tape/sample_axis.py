"""Derive, op by op, where the samples lie in every tensor of a graph.

The embeddings hold one sample in each row. From there the graph is followed towards the parameters: each op tells, by
its rule or else by experiment, where the samples lie in its inputs. What all samples reach is shared: a parameter, or
something made of parameters. A tensor that is shared by one account and not by another is where samples are mixed.
"""

import threading
from collections import Counter, OrderedDict
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harmony.engines.eager import eagerly
from harmony.engines.tape import experiment
from harmony.engines.tape.axis_rules import BY_DATA, MOVES_BY_SHAPE, RULES, Mark, Op, Rule, State
from harmony.engines.tape.errors import MixedSamplesError, UnsupportedError
from harmony.engines.tape.graph import Graph, Output, base_name, parameter_behind
from harmony.engines.tape.layout import NOBODY, Layout, Place, RowMap, place_of, row_ids


class SampleAxis(NamedTuple):
    """Where the samples lie in a graph.

    Attributes:
        shared: For each node, whether its outputs are the same for all samples.
        layouts: Where the samples lie in the outputs of the ops that use something shared.
        fed: Shared nodes into which tensors without a gradient come: constants, so long as they are not of the batch.
    """

    shared: list[bool]
    layouts: dict[Output, Place]
    fed: list[int]

    def uses(self, graph: Graph) -> list[tuple[int, int]]:
        """The ops that use something shared: node and number of the input."""
        users = {node for node, _ in self.layouts}
        return [
            (node, slot)
            for node, inputs in enumerate(graph.inputs)
            if node in users
            for slot, source in enumerate(inputs)
            if source is not None and self.shared[source[0]]
        ]


_KNOWN: OrderedDict[Any, SampleAxis] = OrderedDict()
_REMEMBERED = 64
_LOCK = threading.Lock()


@eagerly()
def sample_axis(
    graph: Graph, outputs: Sequence[Tensor], batch: Sequence[Any], size: int, names: Mapping[Tensor, str]
) -> tuple[SampleAxis, Any]:
    """Where the samples lie; what holds for every batch of the same shapes is derived once.

    Args:
        graph: The graph of a run on ``size`` samples.
        outputs: The tracked embedding leaves of this run.
        batch: The leaves of the batch.
        size: B.
        names: Names of the parameters.

    Returns:
        The places, and the signature of the graph.

    Raises:
        MixedSamplesError: An op mixes samples.
        UnsupportedError: The places cannot be told.
    """
    signature = (size, graph.signature())
    with _LOCK:
        known = _KNOWN.get(signature)
    if known is not None and not any(reads_batch(graph, node, storages(batch)) for node in known.fed):
        return known, signature
    derivation = _Derivation(graph, outputs, batch, size, names)
    result = derivation.result()
    if not derivation.by_data:
        with _LOCK:
            _KNOWN[signature] = result
            if len(_KNOWN) > _REMEMBERED:
                _KNOWN.popitem(last=False)
    return result, signature


class _Derivation:
    """The walk from the embeddings to the parameters.

    Attributes:
        by_data: Whether what was derived rests on the values of this batch.
        unknown: Whether the last walk met a tensor of which nothing can be told.
    """

    def __init__(
        self, graph: Graph, outputs: Sequence[Tensor], batch: Sequence[Any], size: int, names: Mapping[Tensor, str]
    ) -> None:
        self.graph = graph
        self.batch = storages(batch)
        self.leaves = outputs
        self.size = size
        self.names = names
        self.order = graph.order()
        self.constant = graph.made_of_parameters(self.order, names)
        self.by_data = False
        self.unknown = False

    def result(self) -> SampleAxis:
        """The places of all tensors, or what is wrong."""
        tested: dict[Output, State | None] = {}
        while True:
            states, culprits = self._follow(tested)
            if not culprits:
                return self._uses(states)
            # Shares may be read out of what no rule can see, such as a mask: whose gradients arrive there?
            doubtful = [o for o in self._around(states, culprits) if o not in tested]
            if not doubtful or any(o in tested for o in culprits):
                raise self._mixing(culprits)
            self.by_data = True
            tested |= dict(zip(doubtful, self._test(doubtful), strict=True))
            if any(not isinstance(tested[o], Place) for o in culprits):
                raise self._mixing(culprits)

    def _follow(self, tested: Mapping[Output, State | None]) -> tuple[dict[Output, State], dict[Output, int]]:
        """The state of every output, and where accounts differ: the outputs, with an op that is behind it."""
        claims: dict[Output, list[tuple[State, int]]] = {}
        for leaf in self.leaves:
            assert leaf.grad_fn is not None
            root = self.graph.nodes.index(leaf.grad_fn), leaf.output_nr
            claims.setdefault(root, []).append((Layout(0, 1, 1), root[0]))
        states: dict[Output, State] = {}
        culprits: dict[Output, int] = {}
        self.unknown = False
        for node in self.order:
            own: dict[int, State] = {}
            for number, shape in enumerate(self.graph.shapes[node]):
                output = node, number
                if output not in claims:
                    continue
                state = (
                    tested[output]
                    if isinstance(tested.get(output), Place)
                    else self._merge([claim for claim, _ in claims[output]], shape)
                )
                # A parameter is shared whatever its rows are used for, and what is made of it unless all agree on rows.
                if self.graph.parameter(node) in self.names or (self.constant[node] and not isinstance(state, Place)):
                    state = Mark.COMMON
                if state is Mark.COMMON and self._is_fed(node) and reads_batch(self.graph, node, self.batch):
                    state = Mark.MIXED
                if not isinstance(state, Place) and state is not Mark.COMMON:
                    culprits[output] = _culprit(claims[output])
                    self.unknown |= state is Mark.UNKNOWN
                    state = Mark.COMMON
                assert state is not None
                own[number] = states[output] = state
            for slot, claim in enumerate(self._claims(node, own) if own else []):
                source = self.graph.inputs[node][slot]
                if source is not None and claim is not None:
                    claims.setdefault(source, []).append((claim, node))
        return states, culprits

    def _claims(self, node: int, own: dict[int, State]) -> Sequence[State | None]:
        """What an op tells of its inputs."""
        inputs = self.graph.inputs[node]
        places = {number: state for number, state in own.items() if isinstance(state, Place)}
        if not places:
            return [Mark.COMMON] * len(inputs)
        if len(places) < len(own):  # some outputs are shared and others are not
            return [Mark.MIXED] * len(inputs)
        name = base_name(self.graph.names[node])
        shapes = [None if source is None else self.graph.shape(source) for source in inputs]
        rule = RULES.get(name)
        if rule is not None:
            self.by_data |= name in BY_DATA
            op, all_shapes = self.graph.nodes[node], self.graph.shapes[node]
            accounts = [_account(rule, Op(op, n, place, all_shapes, shapes, self.size)) for n, place in places.items()]
            claims = [
                self._merge([claim for claim in of_input if claim is not None], shape)
                for of_input, shape in zip(zip(*accounts, strict=True), shapes, strict=True)
            ]
            if Mark.UNKNOWN not in claims:
                return claims
        self.by_data |= name not in MOVES_BY_SHAPE
        try:
            claims = experiment.through_op(self.graph, node, places, self.size)
        except Exception as error:  # whatever a backward raises that is called outside of a pass
            reason = (
                f"{self.graph.names[node]} does not tell where the samples are ({str(error).partition(chr(10))[0]})"
            )
            raise UnsupportedError(reason) from error
        # What is no parameter and is reached by all samples may be mixed: nobody knows what the op means.
        return [
            Mark.MIXED if claim is Mark.COMMON and source is not None and not self.constant[source[0]] else claim
            for claim, source in zip(claims, inputs, strict=True)
        ]

    def _is_fed(self, node: int) -> bool:
        """Whether tensors without a gradient may come into what an op makes of parameters."""
        inputs = self.graph.inputs[node]
        return None in inputs and any(source is not None for source in inputs) and not self.constant[node]

    def _merge(self, states: Sequence[State], shape: torch.Size | None) -> State | None:
        """One state that agrees with all accounts of a tensor."""
        if not states:
            return None
        if all(state == states[0] for state in states):
            return states[0]
        if not all(isinstance(state, Place) for state in states) or shape is None:
            return Mark.UNKNOWN if Mark.UNKNOWN in states else Mark.MIXED
        places = [state for state in states if isinstance(state, Place)]
        axis = places[0].axis
        if any(place.axis != axis for place in places):
            return Mark.MIXED
        ids = torch.full((shape[axis],), NOBODY, device="cpu")
        for place in places:
            rows = row_ids(place, shape[axis], self.size)
            if bool(((ids >= 0) & (rows >= 0) & (ids != rows)).any()):
                return Mark.MIXED
            ids = torch.where(rows >= 0, rows, ids)
        return place_of(axis, ids, self.size)

    def _around(self, states: Mapping[Output, State], culprits: Mapping[Output, int]) -> list[Output]:
        """What may not be shared although it seems so: the culprits, and what is made of them."""
        behind = {output[0] for output in culprits}
        suspects = list(culprits)
        for node in reversed(self.order):
            if any(source is not None and source[0] in behind for source in self.graph.inputs[node]):
                behind.add(node)
                suspects += [
                    o for o in ((node, n) for n in range(len(self.graph.shapes[node]))) if states.get(o) is Mark.COMMON
                ]
        return list(dict.fromkeys(suspects))

    def _test(self, outputs: Sequence[Output]) -> list[State | None]:
        """Where the samples lie in some outputs, by backward passes from the embeddings."""
        edges = [self.graph.edge(output) for output in outputs]
        noise = [experiment.noise(leaf.shape, leaf.dtype, leaf.device, n) for n, leaf in enumerate(self.leaves)]

        def send(chosen: Tensor) -> Sequence[Tensor | None]:
            cotangents = [x * chosen.to(x.device, x.dtype).view(-1, *[1] * (x.ndim - 1)) for x in noise]
            return torch.autograd.grad(list(self.leaves), edges, cotangents, retain_graph=True, allow_unused=True)

        return experiment.states(send, self.size)

    def _mixing(self, culprits: Mapping[Output, int]) -> Exception:
        output, op = next(iter(culprits.items()))
        names, shape = self.graph.names, tuple(self.graph.shape(output))
        if self.unknown:
            return UnsupportedError(f"{names[op]} does not tell where the samples are in its input of shape {shape}")
        parameter = parameter_behind(self.graph, output[0], self.names)
        return MixedSamplesError.at_op(names[op], names[output[0]], parameter, shape)

    def _uses(self, states: Mapping[Output, State]) -> SampleAxis:
        shared = [states.get((node, 0)) is Mark.COMMON for node in range(len(self.graph.nodes))]
        for (node, _), state in states.items():
            shared[node] = state is Mark.COMMON
        users = {
            node
            for node, inputs in enumerate(self.graph.inputs)
            if not shared[node] and any(source is not None and shared[source[0]] for source in inputs)
        }
        layouts = {o: s for o, s in states.items() if o[0] in users and isinstance(s, Place)}
        fed = [node for (node, _), state in states.items() if state is Mark.COMMON and self._is_fed(node)]
        result = SampleAxis(shared, layouts, fed)
        alone = {node for (node, _), place in layouts.items() if isinstance(place, RowMap) and place.lone}
        lone = Counter(self.graph.inputs[node][slot] for node, slot in result.uses(self.graph) if node in alone)
        if lone and max(lone.values()) >= self.size:
            raise UnsupportedError("a Python loop over the samples runs each of them by ops of its own")
        return result


def _account(rule: Rule, op: Op) -> Sequence[State | None]:
    """What a rule tells; nothing where this torch keeps other options with the op than the rule knows."""
    try:
        return rule(op)
    except AttributeError:
        return [Mark.UNKNOWN] * len(op.inputs)


def _culprit(claims: Sequence[tuple[State, int]]) -> int:
    """An op whose account of a tensor differs from that of others."""
    return next((node for state, node in claims if not isinstance(state, Place)), claims[-1][1])


def storages(batch: Iterable[Any]) -> set[int]:
    """The memory behind the tensors of a batch."""
    return {x.untyped_storage().data_ptr() for x in batch if isinstance(x, Tensor) and _has_storage(x)}


def reads_batch(graph: Graph, node: int, batch: Container[int]) -> bool:
    """Whether an op multiplies tensors of the batch into what is shared by all samples: they are mixed there."""
    names = ("_saved_self", "_saved_mat1", "_saved_batch1", "_saved_input")
    saved = (getattr(graph.nodes[node], name, None) for name in names)
    return any(isinstance(x, Tensor) and _has_storage(x) and x.untyped_storage().data_ptr() in batch for x in saved)


def _has_storage(x: Tensor) -> bool:
    return x.layout is torch.strided and x.ndim > 0 and not x.is_nested
