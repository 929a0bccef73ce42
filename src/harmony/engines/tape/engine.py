"""Run the encoder once on the whole batch, and find in its autograd graph all that per-sample gradients need."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harmony.engines.call import EncoderCall
from harmony.engines.eager import eagerly
from harmony.engines.errors import HookedTensorError, MixedSamplesError, UnsupportedError
from harmony.engines.forward import ForwardPass, forward
from harmony.engines.options import Engine
from harmony.engines.run import Cotangent, PerSample, Run, pull_mixed
from harmony.engines.tape.graph import Graph, Output, walk
from harmony.engines.tape.matmul import HALF
from harmony.engines.tape.param_tensor import param_tensors
from harmony.engines.tape.param_use import Grads, OpaqueUse
from harmony.engines.tape.passes import Arrivals, PiecewiseGradients, Verification, passes
from harmony.engines.tape.per_sample import PerSampleGradients
from harmony.engines.tape.pieces import Cut, Piece, cut_between_regions
from harmony.engines.tape.plan import Load, ParamBlock, Update, param_blocks, work
from harmony.engines.tape.sample_axis import SampleAxis, sample_axis
from harmony.engines.tape.topology import StepPlan, Topology, topology
from harmony.engines.tape.verify import random_half, verify, verify_rearrangements
from harmony.engines.verification import due
from harmony.warn import warn

__all__ = ["Recorded", "record", "require_apart", "run_tape"]

SAMPLE_BLOCKS = 4  # into which a step is cut at most, to use per-sample gradients twice: each calls every op again


class Recorded(NamedTuple):
    """A recorded run: the pass, its graph, and what is known of every graph like it."""

    encoded: ForwardPass
    graph: Graph
    outputs: list[Output]  # the embeddings, as outputs of the graph
    topology: Topology
    signature: bytes
    size: int  # B

    @property
    def dtypes(self) -> set[torch.dtype]:
        """The dtypes at work."""
        return {kind for kinds in self.graph.dtypes for kind in kinds}

    def run(self, call: EncoderCall, engine: Engine) -> Run:
        """What the other parts of the library see."""
        result = self.encoded

        def per_sample(cotangents: Sequence[Cotangent], fused: bool) -> PerSample:
            update, blocks, pieces = self.plan(call, engine, cotangents, fused)

            def arrivals() -> Arrivals:
                sent = [self._at_outputs(cotangent) for cotangent in cotangents]
                return passes(self.graph, pieces, sent, self._verification(call, engine, cotangents, blocks))

            def backward(weights: Tensor) -> list[Tensor]:
                return pull_mixed(result.pull, cotangents, weights, call.label)

            def gradients(piece: Piece, graph: Graph, grads: Grads) -> PerSampleGradients:
                return PerSampleGradients(
                    graph=graph,
                    blocks=piece.blocks,
                    grads=grads,
                    layouts=self.topology.places.layouts,
                    leaves=result.params,
                    size=self.size,
                    memory=engine.bytes_on(call.params[0].device),
                    update=update,
                    labels=max(call.label) + 1,
                    backward=backward,
                )

            if len(pieces) > 1:
                return PiecewiseGradients(arrivals, gradients, self.size, backward)
            return gradients(*next(arrivals()))

        return Run(result.detached, result.spec, result.tracked, result.pull, per_sample, result.reaches)

    def _at_outputs(self, cotangent: Cotangent) -> dict[Output, Tensor]:
        """A cotangent by the outputs of the graph."""
        sent: dict[Output, Tensor] = {}
        for output, leaf, c in zip(self.outputs, self.encoded.outputs, cotangent, strict=True):
            if c is not None:
                sent[output] = sent[output] + c.to(leaf.dtype) if output in sent else c.to(leaf.dtype)
        return sent

    def _verification(
        self, call: EncoderCall, engine: Engine, cotangents: Sequence[Cotangent], blocks: list[ParamBlock]
    ) -> Verification | None:
        """One more cotangent, and what is verified of its gradients; None where it is not the time."""
        if not due(self.signature, engine.verify):
            return None
        params, layouts = self.encoded.params, self.topology.places.layouts
        verify_rearrangements(self.graph, blocks, params, call.names)
        half = random_half(self.encoded.outputs, cotangents, self.size)
        names = dict(zip(params, call.names, strict=True))
        return self._at_outputs(half.cotangent), lambda grads: verify(self.graph, half, grads, layouts, names)

    def plan(self, call: EncoderCall, engine: Engine, cotangents: Sequence[Cotangent], fused: bool) -> StepPlan:
        """Where the update comes from, and what is computed for each parameter."""
        group = min(call.group_size, call.size)
        memory = engine.bytes_on(call.params[0].device)
        reaching = tuple(tuple(c is not None for c in cotangent) for cotangent in cotangents)
        key = tuple(call.label), reaching, group, fused, engine.update, memory

        def make() -> StepPlan:
            update, blocks = self._plan(call, engine.update, memory, group, cotangents, fused)
            return StepPlan(update, blocks, self._cut(update).walk(blocks))

        return self.topology.plan(key, make)

    def _plan(
        self, call: EncoderCall, update: Any, memory: int, group: int, cotangents: Sequence[Cotangent], fused: bool
    ) -> tuple[Update, list[ParamBlock]]:
        reached, tensors = self._reached(cotangents), self.topology.tensors
        groups = -(-call.size // group)
        counted = [tensor for tensor in tensors if any(call.selected[p] for p in tensor.params)]

        def blocks(update: Update) -> list[ParamBlock]:
            chosen = counted if update == "backward" else tensors
            load = Load(reached, group, groups, memory // 4, self._cut(update).numbers, update == "kept")
            return param_blocks(chosen, call.params, call.label, load)

        if update != "auto":
            return update, blocks(update)
        # Where the Gram is taken over few parameters, the passes of the losses may stop early. Where the graph is cut,
        # nothing of a piece is kept. Several Grams have weights of their own, and would need a pass each.
        if max(call.label) == 0 and (not self.topology.cut.is_whole or work(counted) < 0.5 * work(tensors)):
            return "backward", blocks("backward")
        kept = blocks("kept")
        at_least = -(-groups // SAMPLE_BLOCKS) if fused else groups
        entries = sum(block.kept for block in kept if block.counted)
        if 0 < at_least * entries * 4 <= memory:
            return "kept", kept
        # The tape mixes output gradients in float32, which no tensor core multiplies.
        on_tensor_cores = call.params[0].is_cuda and not self.dtypes.isdisjoint(HALF) and max(call.label) == 0
        spared: Update = "backward" if on_tensor_cores else "tape"
        return spared, blocks(spared)

    def _cut(self, update: Update) -> Cut:
        """Updates that are made of what gave the Gram need all of it."""
        return self.topology.cut if update == "backward" else Cut.whole(self.graph)

    def _reached(self, cotangents: Sequence[Cotangent]) -> list[set[int]]:
        """For each loss, the nodes that its cotangents reach."""
        return [
            set(self.graph.behind(node for (node, _), c in zip(self.outputs, cotangent, strict=True) if c is not None))
            for cotangent in cotangents
        ]


def run_tape(call: EncoderCall, engine: Engine) -> Run:
    """Run the encoder on the tape, and warn of what is slow."""
    recorded = record(call)
    _warn_of_opaque(recorded, call.names)
    return recorded.run(call, engine)


@eagerly()
def record(call: EncoderCall) -> Recorded:
    """Encode with ordinary autograd and read the graph; raises MixedSamplesError or UnsupportedError."""
    encoded = forward(call)
    with _explained(encoded, call) as graph:
        if encoded.hooked:
            raise HookedTensorError
        encoded.require_paths(graph.paths(), call)
        signature = graph.signature({leaf: i for i, leaf in enumerate(encoded.params)})
        outputs = graph.find(encoded.outputs)

        def derive() -> Topology:
            places = _sample_axis(graph, encoded, call)
            cut = cut_between_regions(graph, outputs, places.uses)
            return Topology(places, param_tensors(graph, places, cut.numbers, encoded.params), cut)

        known = topology(graph, signature, call.batch, derive)
    return Recorded(encoded, graph, outputs, known, signature, call.size)


@eagerly()
def require_apart(encoded: ForwardPass, call: EncoderCall) -> None:
    """Raise MixedSamplesError or UnsupportedError unless the graph of a pass keeps the samples apart."""
    with _explained(encoded, call) as graph:
        _sample_axis(graph, encoded, call)


@contextlib.contextmanager
def _explained(encoded: ForwardPass, call: EncoderCall) -> Iterator[Graph]:
    """The graph of a pass; errors inside hold its embeddings and its signature."""
    graph = None
    try:
        graph = walk(encoded.outputs)
        yield graph
    except (UnsupportedError, MixedSamplesError) as error:
        error.leaves = encoded.detached
        error.signature = None if graph is None else graph.signature({p: i for i, p in enumerate(encoded.params)})
        raise


def _sample_axis(graph: Graph, encoded: ForwardPass, call: EncoderCall) -> SampleAxis:
    names = dict(zip(encoded.params, call.names, strict=True))
    return sample_axis(graph, encoded.outputs, call.batch, call.size, names)


def _warn_of_opaque(recorded: Recorded, names: list[str]) -> None:
    params_of: dict[str, set[str]] = {}
    for tensor in recorded.topology.tensors:
        for use, _ in tensor.uses:
            if isinstance(use, OpaqueUse):
                params_of.setdefault(use.site.op, set()).add(repr(names[tensor.params[0]]))
    for op, params in params_of.items():
        warn(
            f"{op}, which uses {', '.join(sorted(params))}, has no closed form for gradients of single samples: its "
            "own backward is run once for each of them."
        )
