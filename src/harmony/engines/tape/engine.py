"""Run the encoder once on the whole batch, and find in its autograd graph all that per-sample gradients need."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from harmony.engines.eager import eagerly
from harmony.engines.encoded import Cotangent, PerSample, Trace, pull_mixed
from harmony.engines.paths import require_paths
from harmony.engines.tape.errors import MixedSamplesError, UnsupportedError
from harmony.engines.tape.graph import Graph, pull_back, walk
from harmony.engines.tape.materialize import ScratchBuffer
from harmony.engines.tape.param_tensor import ParamTensor, param_tensors
from harmony.engines.tape.param_use import OpaqueUse
from harmony.engines.tape.per_sample import PerSampleGradients
from harmony.engines.tape.plan import Load, ParamBlock, Update, param_blocks, work
from harmony.engines.tape.sample_axis import SampleAxis, sample_axis
from harmony.engines.tape.verify import Verify, due, verify, verify_rearrangements
from harmony.engines.trace import Inputs, Pass, detached, pull_batch, reach, run_batch
from harmony.warn import warn

SAMPLE_BLOCKS = 4  # into which a step is cut at most, to use per-sample gradients twice: each calls every op again


class Settings(Protocol):
    """The options that this engine reads."""

    @property
    def update(self) -> str: ...

    @property
    def memory(self) -> int: ...

    @property
    def group_size(self) -> int: ...

    @property
    def verify(self) -> Verify: ...


class Run(NamedTuple):
    """A recorded run: the pass, its graph, where the samples lie in it, and the tensors made of parameters."""

    encoded: Pass
    graph: Graph
    places: SampleAxis
    signature: Any
    tensors: list[ParamTensor]
    size: int  # B


@eagerly()
def record(inputs: Inputs) -> Run:
    """Encode with ordinary autograd and read the graph; raises MixedSamplesError or UnsupportedError."""
    params = inputs.tracked_params()
    encoded = run_batch(inputs, params)
    names = dict(zip(params, inputs.names, strict=True))
    graph = None
    try:
        graph = walk(encoded.outputs)
        require_paths(graph.paths(), params, inputs.names, encoded.hidden, inputs.refuse)
        places, signature = sample_axis(graph, encoded.outputs, inputs.batch, inputs.size, names)
        tensors = _in_one_task(lambda: param_tensors(graph, places, params))
    except (UnsupportedError, MixedSamplesError) as error:
        error.leaves = detached(encoded.leaves)
        error.signature = inputs.size, None if graph is None else graph.signature()
        raise
    return Run(encoded, graph, places, signature, tensors, inputs.size)


def trace_tape(inputs: Inputs, options: Settings, scratch: ScratchBuffer) -> Trace:
    """Run the encoder on the tape; runs that follow one another may have one scratch buffer."""
    run = record(inputs)
    _warn_of_opaque(run, inputs.names)
    return trace_of(run, inputs, options, scratch)


def trace_of(run: Run, inputs: Inputs, options: Settings, scratch: ScratchBuffer) -> Trace:
    """What the other parts of the library see of a run."""
    outputs, params = run.encoded.outputs, run.encoded.params

    def per_sample(cotangents: Sequence[Cotangent], fused: bool) -> PerSample:
        update, blocks = plan(run, inputs, options, reached_by(run, cotangents), fused)
        needed = sorted(set().union(*(block.outputs for block in blocks)))
        edges = [run.graph.edge(output) for output in needed]
        passes = [zip(needed, pull_back(outputs, c, edges), strict=True) for c in cotangents]
        grads = [{output: grad for output, grad in received if grad is not None} for received in passes]
        layouts = {output: run.places.layouts[output] for output in needed}
        if due(run.signature, options.verify):
            names = dict(zip(params, inputs.names, strict=True))
            verify_rearrangements([t for block in blocks for t in block.tensors], params, inputs.names)
            verify(run.graph, outputs, cotangents, layouts, run.size, names)
        return PerSampleGradients(
            blocks=blocks,
            grads=grads,
            layouts=layouts,
            leaves=params,
            size=run.size,
            memory=options.memory,
            update=update,
            scratch=scratch,
            labels=max(inputs.label) + 1,
            backward=lambda weights: pull_mixed(pull, cotangents, weights, inputs.label),
        )

    def pull(cotangent: Cotangent) -> list[Tensor]:
        return pull_batch(outputs, params, cotangent)

    leaves = detached(run.encoded.leaves)
    return Trace(
        leaves, run.encoded.spec, run.encoded.tracked, pull, per_sample, reaches=lambda: reach(outputs, params)
    )


def reached_by(run: Run, cotangents: Sequence[Cotangent]) -> list[set[int]]:
    """For each loss, the nodes that its cotangents reach."""
    index = {node: i for i, node in enumerate(run.graph.nodes)}
    roots = [index[output.grad_fn] for output in run.encoded.outputs if output.grad_fn is not None]
    return [
        set(run.graph.behind(root for root, c in zip(roots, cotangent, strict=True) if c is not None))
        for cotangent in cotangents
    ]


def plan(
    run: Run, inputs: Inputs, options: Settings, reached: list[set[int]], fused: bool
) -> tuple[Update, list[ParamBlock]]:
    """Where the update comes from, and what is computed for each parameter."""
    group = min(options.group_size, inputs.size)
    groups = -(-inputs.size // group)
    counted = [tensor for tensor in run.tensors if any(inputs.selected[p] for p in tensor.params)]
    update: Any = options.update
    if update == "auto":
        selected = zip(inputs.params, inputs.selected, strict=True)
        entries = len(reached) * sum(p.numel() for p, is_selected in selected if is_selected)
        at_least = -(-groups // SAMPLE_BLOCKS) if fused else groups
        fits = at_least * entries * 4 <= options.memory
        # Where the Gram is taken over few parameters, the passes of the losses may stop early.
        # Several Grams have weights of their own, and would need a pass each.
        partial = max(inputs.label) == 0 and work(counted) < 0.5 * work(run.tensors)
        update = "backward" if partial else "kept" if fits else "tape"
    tensors = counted if update == "backward" else run.tensors
    return update, param_blocks(tensors, inputs.params, inputs.label, Load(reached, group, update == "kept"))


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


def _warn_of_opaque(run: Run, names: list[str]) -> None:
    params_of: dict[str, set[str]] = {}
    for tensor in run.tensors:
        for use, _ in tensor.uses:
            if isinstance(use, OpaqueUse):
                params_of.setdefault(use.site.node.name(), set()).add(repr(names[tensor.params[0]]))
    for op, params in params_of.items():
        warn(
            f"{op}, which uses {', '.join(sorted(params))}, has no closed form for gradients of single samples: its "
            "own backward is run once for each of them."
        )
