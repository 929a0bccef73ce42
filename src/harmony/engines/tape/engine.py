"""Run the encoder once on the whole batch, and find in its autograd graph all that per-sample gradients need."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from harmony.engines.call import EncoderCall
from harmony.engines.eager import eagerly
from harmony.engines.forward import ForwardPass, forward
from harmony.engines.options import Engine
from harmony.engines.run import Cotangent, PerSample, Run, pull_mixed
from harmony.engines.tape.errors import MixedSamplesError, UnsupportedError
from harmony.engines.tape.graph import Graph, pull_back, walk
from harmony.engines.tape.materialize import ScratchBuffer
from harmony.engines.tape.param_tensor import ParamTensor, param_tensors
from harmony.engines.tape.param_use import OpaqueUse
from harmony.engines.tape.per_sample import PerSampleGradients
from harmony.engines.tape.plan import Load, ParamBlock, Update, param_blocks, work
from harmony.engines.tape.sample_axis import SampleAxis, sample_axis
from harmony.engines.tape.verify import due, verify, verify_rearrangements
from harmony.warn import warn

SAMPLE_BLOCKS = 4  # into which a step is cut at most, to use per-sample gradients twice: each calls every op again


class Recorded(NamedTuple):
    """A recorded run: the pass, its graph, where the samples lie in it, and the tensors made of parameters."""

    encoded: ForwardPass
    graph: Graph
    places: SampleAxis
    signature: Any
    tensors: list[ParamTensor]
    size: int  # B


@eagerly()
def record(call: EncoderCall) -> Recorded:
    """Encode with ordinary autograd and read the graph; raises MixedSamplesError or UnsupportedError."""
    encoded = forward(call)
    names = dict(zip(encoded.params, call.names, strict=True))
    graph = None
    try:
        graph = walk(encoded.outputs)
        encoded.require_paths(graph.paths(), call)
        places, signature = sample_axis(graph, encoded.outputs, call.batch, call.size, names)
        tensors = _in_one_task(lambda: param_tensors(graph, places, encoded.params))
    except (UnsupportedError, MixedSamplesError) as error:
        error.leaves = encoded.detached
        error.signature = call.size, None if graph is None else graph.signature()
        raise
    return Recorded(encoded, graph, places, signature, tensors, call.size)


def trace_tape(call: EncoderCall, engine: Engine, scratch: ScratchBuffer) -> Run:
    """Run the encoder on the tape; runs that follow one another may have one scratch buffer."""
    recorded = record(call)
    _warn_of_opaque(recorded, call.names)
    return trace_of(recorded, call, engine, scratch)


def trace_of(recorded: Recorded, call: EncoderCall, engine: Engine, scratch: ScratchBuffer) -> Run:
    """What the other parts of the library see of a run."""
    outputs, params = recorded.encoded.outputs, recorded.encoded.params

    def per_sample(cotangents: Sequence[Cotangent], fused: bool) -> PerSample:
        update, blocks = plan(recorded, call, engine, reached_by(recorded, cotangents), fused)
        needed = sorted(set().union(*(block.outputs for block in blocks)))
        edges = [recorded.graph.edge(output) for output in needed]
        passes = [zip(needed, pull_back(outputs, c, edges), strict=True) for c in cotangents]
        grads = [{output: grad for output, grad in received if grad is not None} for received in passes]
        layouts = {output: recorded.places.layouts[output] for output in needed}
        if due(recorded.signature, engine.verify):
            names = dict(zip(params, call.names, strict=True))
            verify_rearrangements([t for block in blocks for t in block.tensors], params, call.names)
            verify(recorded.graph, outputs, cotangents, layouts, recorded.size, names)
        return PerSampleGradients(
            blocks=blocks,
            grads=grads,
            layouts=layouts,
            leaves=params,
            size=recorded.size,
            memory=engine.memory,
            update=update,
            scratch=scratch,
            labels=max(call.label) + 1,
            backward=lambda weights: pull_mixed(recorded.encoded.pull, cotangents, weights, call.label),
        )

    result = recorded.encoded
    return Run(result.detached, result.spec, result.tracked, result.pull, per_sample, result.reaches)


def reached_by(recorded: Recorded, cotangents: Sequence[Cotangent]) -> list[set[int]]:
    """For each loss, the nodes that its cotangents reach."""
    index = {node: i for i, node in enumerate(recorded.graph.nodes)}
    roots = [index[output.grad_fn] for output in recorded.encoded.outputs if output.grad_fn is not None]
    return [
        set(recorded.graph.behind(root for root, c in zip(roots, cotangent, strict=True) if c is not None))
        for cotangent in cotangents
    ]


def plan(
    recorded: Recorded, call: EncoderCall, engine: Engine, reached: list[set[int]], fused: bool
) -> tuple[Update, list[ParamBlock]]:
    """Where the update comes from, and what is computed for each parameter."""
    group = min(call.group_size, call.size)
    groups = -(-call.size // group)
    counted = [tensor for tensor in recorded.tensors if any(call.selected[p] for p in tensor.params)]
    update: Any = engine.update
    if update == "auto":
        selected = zip(call.params, call.selected, strict=True)
        entries = len(reached) * sum(p.numel() for p, is_selected in selected if is_selected)
        at_least = -(-groups // SAMPLE_BLOCKS) if fused else groups
        fits = at_least * entries * 4 <= engine.memory
        # Where the Gram is taken over few parameters, the passes of the losses may stop early.
        # Several Grams have weights of their own, and would need a pass each.
        partial = max(call.label) == 0 and work(counted) < 0.5 * work(recorded.tensors)
        update = "backward" if partial else "kept" if fits else "tape"
    tensors = counted if update == "backward" else recorded.tensors
    return update, param_blocks(tensors, call.params, call.label, Load(reached, group, update == "kept"))


def _in_one_task(read: Callable[[], Any]) -> Any:
    """Call a function inside a backward pass of nothing.

    Activation checkpointing computes a saved tensor again when it is read: once for all of them within one backward
    pass, once for each outside of any.
    """
    results: list[Any] = []
    with torch.enable_grad():
        start = torch.zeros((), requires_grad=True)
        end = start.clone()
    end.register_hook(lambda grad: results.append(read()))  # type: ignore[no-untyped-call]
    torch.autograd.grad(end, start)
    return results[0]


def _warn_of_opaque(recorded: Recorded, names: list[str]) -> None:
    params_of: dict[str, set[str]] = {}
    for tensor in recorded.tensors:
        for use, _ in tensor.uses:
            if isinstance(use, OpaqueUse):
                params_of.setdefault(use.site.node.name(), set()).add(repr(names[tensor.params[0]]))
    for op, params in params_of.items():
        warn(
            f"{op}, which uses {', '.join(sorted(params))}, has no closed form for gradients of single samples: its "
            "own backward is run once for each of them."
        )
