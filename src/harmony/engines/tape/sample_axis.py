"""Derive, op by op, where the samples lie in every tensor of a graph.

The embeddings hold one sample in each row. From there the graph is followed towards the parameters: each op tells, by
its rule or else by experiment, where the samples lie in its inputs. What all samples reach is common to them: a
parameter, or something made of parameters. A tensor that is common by one account and not by another mixes samples.
"""

import contextlib
from collections import Counter
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harmony.engines.eager import eagerly
from harmony.engines.errors import MixedSamplesError, UnsupportedError
from harmony.engines.forward import pull_back
from harmony.engines.tape import autograd_fields as fields
from harmony.engines.tape import experiment
from harmony.engines.tape.axis_rules import BY_DATA, MOVES_BY_SHAPE, RULES
from harmony.engines.tape.graph import Graph, Output, base_name
from harmony.engines.tape.layout import NOBODY, Layout, Mark, Place, RowMap, State, place_of_rows, row_ids


class SampleAxis(NamedTuple):
    """Where the samples lie in a graph."""

    size: int  # B
    uses: list[tuple[int, int]]  # the ops that use something common to all samples: node and number of the input
    layouts: dict[Output, Place]  # of the outputs of these ops
    fed: list[int]  # common nodes into which tensors without a gradient come: constants, unless they are of the batch
    by_data: bool  # whether it rests on the values of one batch

    def serves(self, graph: Graph, batch: Sequence[Any]) -> bool:
        """Whether what was derived for a graph of the same signature holds for this batch."""
        return not self.fed or not any(_reads_batch(graph, node, _storages(batch)) for node in self.fed)


@eagerly()
def sample_axis(
    graph: Graph, outputs: Sequence[Tensor], batch: Sequence[Any], size: int, names: Mapping[Tensor, str]
) -> SampleAxis:
    """Where the samples lie in a graph."""
    return _Derivation(graph, outputs, _storages(batch), size, names).result()


@dataclass
class _Derivation:
    """The walk from the embeddings to the parameters."""

    graph: Graph
    leaves: Sequence[Tensor]
    batch: Container[int]
    size: int
    names: Mapping[Tensor, str]
    by_data: bool = False  # whether what was derived rests on the values of this batch
    unknown: bool = False  # whether the last walk met a tensor of which nothing can be told

    def __post_init__(self) -> None:
        self.order = self.graph.order()
        self.constant = self.graph.made_of_parameters(self.names)

    def result(self) -> SampleAxis:
        """The places of all tensors, or what is wrong."""
        tested: dict[Output, State | None] = {}
        while True:
            states, culprits = self._follow(tested)
            if not culprits:
                return self._sample_axis(states)
            # Samples may be kept apart by what no rule can see, such as a mask: whose gradients arrive there?
            doubtful = [output for output in self._doubtful(states, culprits) if output not in tested]
            if not doubtful or any(output in tested for output in culprits):
                raise self._mixing(culprits)
            self.by_data = True
            tested |= dict(zip(doubtful, self._test(doubtful), strict=True))
            if any(not isinstance(tested[output], Place) for output in culprits):
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
            outputs: dict[int, State] = {}
            for number in range(len(self.graph.shapes[node])):
                output = node, number
                if output not in claims:
                    continue
                state = self._state(output, [claim for claim, _ in claims[output]], tested.get(output))
                if state is Mark.MIXED or state is Mark.UNKNOWN:
                    doubters = [user for claim, user in claims[output] if not isinstance(claim, Place)]
                    culprits[output] = doubters[0] if doubters else claims[output][-1][1]
                    self.unknown |= state is Mark.UNKNOWN
                    state = Mark.COMMON
                outputs[number] = states[output] = state
            for slot, claim in self._claims(node, outputs) if outputs else ():
                source = self.graph.inputs[node][slot]
                if source is not None and claim is not None:
                    claims.setdefault(source, []).append((claim, node))
        return states, culprits

    def _state(self, output: Output, claims: Sequence[State], tested: State | None) -> State:
        """The state of an output, by what was tested, what its users claim, and what it is made of."""
        node = output[0]
        state = tested if isinstance(tested, Place) else _merge(claims, self.graph.shape(output), self.size)
        # A parameter is common whatever its rows are used for, and what is made of it unless all agree on rows.
        is_parameter = fields.leaf(self.graph.nodes[node]) in self.names
        if is_parameter or (self.constant[node] and not isinstance(state, Place)):
            state = Mark.COMMON
        if state is Mark.COMMON and self._is_fed(node) and _reads_batch(self.graph, node, self.batch):
            return Mark.MIXED
        return state

    def _claims(self, node: int, outputs: Mapping[int, State]) -> list[tuple[int, State | None]]:
        """What an op tells of its inputs, given the states of its outputs: numbers of inputs, and their states."""
        places = {number: state for number, state in outputs.items() if isinstance(state, Place)}
        if len(places) < len(outputs):  # where some outputs are common and others are not, samples are mixed
            return [(slot, Mark.MIXED if places else Mark.COMMON) for slot in range(len(self.graph.inputs[node]))]
        name = base_name(self.graph.names[node])
        if name in RULES:
            self.by_data |= name in BY_DATA
            sites = self.graph.sites(node, places, self.size)
            with contextlib.suppress(AttributeError):  # this torch keeps other options with the op than the rule knows
                claims = [(site.slot, RULES[name](site)) for site in sites]
                if all(claim is not Mark.UNKNOWN for _, claim in claims):
                    return claims
        self.by_data |= name not in MOVES_BY_SHAPE
        return list(enumerate(self._try_op(node, places)))

    def _try_op(self, node: int, places: Mapping[int, Place]) -> list[State | None]:
        """The states of the inputs of an op, by experiment."""
        try:
            claims = experiment.through_op(self.graph, node, places, self.size)
        except Exception as error:  # whatever a backward raises that is called outside of a pass
            reason = str(error).partition("\n")[0]
            name = self.graph.names[node]
            raise UnsupportedError(f"{name} does not tell where the samples are ({reason})") from error
        # What is no parameter and is reached by all samples may be mixed: nobody knows what the op means.
        return [
            Mark.MIXED if claim is Mark.COMMON and source is not None and not self.constant[source[0]] else claim
            for claim, source in zip(claims, self.graph.inputs[node], strict=False)
        ]

    def _is_fed(self, node: int) -> bool:
        """Whether tensors without a gradient may come into what an op makes of parameters."""
        return bool(self.graph.sources(node)) and None in self.graph.inputs[node] and not self.constant[node]

    def _doubtful(self, states: Mapping[Output, State], culprits: Collection[Output]) -> list[Output]:
        """What may not be common although it seems so: the culprits, and what is made of them."""
        behind = {node for node, _ in culprits}
        doubtful = list(culprits)
        for node in reversed(self.order):
            if any(source in behind for source, _ in self.graph.sources(node)):
                behind.add(node)
                outputs = [(node, number) for number in range(len(self.graph.shapes[node]))]
                doubtful += [output for output in outputs if states.get(output) is Mark.COMMON]
        return list(dict.fromkeys(doubtful))

    def _test(self, outputs: Sequence[Output]) -> list[State | None]:
        """Where the samples lie in some outputs, by backward passes from the embeddings."""
        edges = [self.graph.edge(output) for output in outputs]
        noise = [experiment.noise(leaf.shape, leaf.dtype, leaf.device, n) for n, leaf in enumerate(self.leaves)]

        def send(chosen: Tensor) -> Sequence[Tensor | None]:
            cotangents = [x * chosen.to(x.device, x.dtype).view(-1, *[1] * (x.ndim - 1)) for x in noise]
            return pull_back(self.leaves, cotangents, edges)

        return experiment.states(send, self.size)

    def _mixing(self, culprits: Mapping[Output, int]) -> Exception:
        output, op = next(iter(culprits.items()))
        names, shape = self.graph.names, tuple(self.graph.shape(output))
        if self.unknown:
            return UnsupportedError(f"{names[op]} does not tell where the samples are in its input of shape {shape}")
        parameter = self.graph.nearest_parameter(output[0], self.names)
        return MixedSamplesError.at_op(names[op], names[output[0]], parameter, shape)

    def _sample_axis(self, states: Mapping[Output, State]) -> SampleAxis:
        common = {node for (node, _), state in states.items() if state is Mark.COMMON}
        inputs = self.graph.inputs
        uses = [
            (node, slot)
            for node in sorted({node for node, _ in states} - common)
            for slot, source in enumerate(inputs[node])
            if source is not None and source[0] in common
        ]
        users = {node for node, _ in uses}
        layouts = {o: state for o, state in states.items() if o[0] in users and isinstance(state, Place)}
        lone = {node for (node, _), place in layouts.items() if isinstance(place, RowMap) and place.lone}
        lone_users = Counter(inputs[node][slot] for node, slot in uses if node in lone)
        if lone_users and max(lone_users.values()) >= self.size:
            raise UnsupportedError("a Python loop over the samples runs each of them by ops of its own")
        return SampleAxis(self.size, uses, layouts, [node for node in common if self._is_fed(node)], self.by_data)


def _merge(states: Sequence[State], shape: torch.Size, size: int) -> State:
    """One state that agrees with all accounts of a tensor."""
    if all(state == states[0] for state in states):
        return states[0]
    places = [state for state in states if isinstance(state, Place)]
    if len(places) < len(states):
        return Mark.UNKNOWN if Mark.UNKNOWN in states else Mark.MIXED
    axis = places[0].axis
    if any(place.axis != axis for place in places):
        return Mark.MIXED
    ids = torch.full((shape[axis],), NOBODY, device="cpu")
    for place in places:
        rows = row_ids(place, shape[axis], size)
        if bool(((ids >= 0) & (rows >= 0) & (ids != rows)).any()):
            return Mark.MIXED
        ids = torch.where(rows >= 0, rows, ids)
    return place_of_rows(axis, ids, size) or Mark.UNKNOWN


def _storages(tensors: Iterable[Any]) -> set[int]:
    """The memory behind some tensors, of those that have memory of their own."""
    return {
        x.untyped_storage().data_ptr()
        for x in tensors
        if isinstance(x, Tensor) and x.layout is torch.strided and x.ndim > 0 and not x.is_nested
    }


def _reads_batch(graph: Graph, node: int, batch: Container[int]) -> bool:
    """Whether an op multiplies tensors of the batch into what is common to all samples: they are mixed there."""
    saved = [fields.saved_or_none(graph.nodes[node], name) for name in ("self", "mat1", "batch1", "input")]
    return any(storage in batch for storage in _storages(saved))
