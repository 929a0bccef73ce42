"""Run the encoder once on the whole batch, and find in its autograd graph all that per-sample gradients need."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from harmony.engines.eager import eagerly
from harmony.engines.encoded import Cotangent, PerSample, Trace, pull_mixed
from harmony.engines.paths import require_paths
from harmony.engines.precision import full_precision
from harmony.engines.tape.errors import MixedSamplesError, UnsupportedError
from harmony.engines.tape.graph import Graph, Output, walk
from harmony.engines.tape.materialize import ScratchBuffer
from harmony.engines.tape.param_tensor import ParamTensor, find_param_tensors
from harmony.engines.tape.param_use import OpaqueUse
from harmony.engines.tape.per_sample import PerSampleGradients
from harmony.engines.tape.plan import ParamBlock, Update, pieces, work
from harmony.engines.tape.sample_axis import SampleAxis, sample_axis
from harmony.engines.tape.verify import Verify, due, verify, verify_rearrangements
from harmony.engines.trace import Inputs, detached, pull_batch, reach, run_batch
from harmony.warn import warn

BLOCKS = 4
"""Blocks of groups that a step is cut into at most, to use per-sample gradients twice: each calls every op again."""


class Settings(Protocol):
    """The options that the tape looks at."""

    @property
    def update(self) -> str:
        """Where the update comes from."""

    @property
    def memory(self) -> int:
        """Bytes for per-sample gradients."""

    @property
    def group_size(self) -> int:
        """Samples in a group."""

    @property
    def verify(self) -> Verify:
        """How often the places of the samples are verified."""


class Run(NamedTuple):
    """A run on the tape: the graph, where the samples lie in it, and the shared tensors it uses."""

    params: list[Tensor]
    leaves: list[Any]
    spec: Any
    tracked: list[bool]
    graph: Graph
    places: SampleAxis
    signature: Any
    targets: list[ParamTensor]
    size: int

    @property
    def outputs(self) -> list[Tensor]:
        """The embedding leaves that depend on the parameters, with their graph."""
        return [leaf for leaf, t in zip(self.leaves, self.tracked, strict=True) if t]


@eagerly()
def record(inputs: Inputs) -> Run:
    """Encode with ordinary autograd and read the graph.

    Raises:
        MixedSamplesError: The encoder mixes samples.
        UnsupportedError: It cannot be recorded.
    """
    params = inputs.tracked_params()
    run = run_batch(inputs, params)
    names = dict(zip(params, inputs.names, strict=True))
    graph = None
    try:
        graph = walk(run.outputs)
        require_paths(graph.paths(), params, inputs.names, run.hidden, inputs.refuse)
        places, signature = sample_axis(graph, run.outputs, inputs.batch, inputs.size, names)
        targets = _in_one_task(lambda: find_param_tensors(graph, places, params))
    except (UnsupportedError, MixedSamplesError) as error:
        error.leaves = detached(run.leaves)
        error.signature = inputs.size, None if graph is None else graph.signature()
        raise
    return Run(params, run.leaves, run.spec, run.tracked, graph, places, signature, targets, inputs.size)


def trace_tape(inputs: Inputs, options: Settings, storage: ScratchBuffer) -> Trace:
    """Run the encoder on the tape; runs that follow one another may share their working storage."""
    run = record(inputs)
    _warn_of_isolated(run, inputs.names)
    return trace_of(run, inputs, options, storage)


def trace_of(run: Run, inputs: Inputs, options: Settings, storage: ScratchBuffer) -> Trace:
    """What the other parts of the library see of a run."""

    def per_sample(cotangents: Sequence[Cotangent], fused: bool) -> PerSample:
        update, chosen = plan(run, inputs, options, reached_by(run, cotangents), fused)
        wanted = sorted({o for piece in chosen for t in piece.targets for _, outputs in t.uses for o in outputs})
        grads = _output_gradients(run, wanted, cotangents)
        if due(run.signature, options.verify):
            names = dict(zip(run.params, inputs.names, strict=True))
            places = {o: run.places.layouts[o] for o in wanted}
            verify_rearrangements([t for piece in chosen for t in piece.targets], run.params, inputs.names)
            verify(run.graph, run.outputs, cotangents, places, run.size, names)
        return PerSampleGradients(
            chosen, grads, run.places.layouts, run.params, inputs.size,
            options.memory, update, storage, max(inputs.label) + 1,
            backward=lambda weights: pull_mixed(pull, cotangents, weights, inputs.label),
        )  # fmt: skip

    def pull(cotangent: Cotangent) -> list[Tensor]:
        return pull_batch(run.outputs, run.params, cotangent)

    reaches = lambda: reach(run.outputs, run.params)  # noqa: E731
    return Trace(detached(run.leaves), run.spec, run.tracked, pull, per_sample, reaches)


def reached_by(run: Run, cotangents: Sequence[Cotangent]) -> list[set[int]]:
    """For each loss, the nodes that its cotangents reach."""
    nodes = {node: i for i, node in enumerate(run.graph.nodes)}
    found = []
    for cotangent in cotangents:
        roots = [nodes[o.grad_fn] for o, c in zip(run.outputs, cotangent, strict=True) if c is not None and o.grad_fn]
        stack, seen = list(roots), set(roots)
        while stack:
            for source in run.graph.inputs[stack.pop()]:
                if source is not None and source[0] not in seen:
                    seen.add(source[0])
                    stack.append(source[0])
        found.append(seen)
    return found


def plan(
    run: Run, inputs: Inputs, options: Settings, reached: list[set[int]], fused: bool
) -> tuple[Update, list[ParamBlock]]:
    """Where the update comes from, and what is computed for each parameter."""
    group = min(options.group_size, inputs.size)
    groups = -(-inputs.size // group)
    selected = inputs.selected
    counted = [t for t in run.targets if any(selected[p] for p in t.params)]
    update = options.update
    if update == "auto":
        entries = len(reached) * sum(p.numel() for p, s in zip(run.params, selected, strict=True) if s)
        at_least = -(-groups // BLOCKS) if fused else groups
        fits = at_least * entries * 4 <= options.memory
        # Where the Gram is taken over few parameters, the passes of the losses may stop early.
        # Several Grams have weights of their own, and would need a pass each.
        partial = max(inputs.label) == 0 and work(counted) < 0.5 * work(run.targets)
        update = "backward" if partial else "kept" if fits else "tape"
    targets = counted if update == "backward" else run.targets
    return update, pieces(targets, run.params, inputs.label, reached, group, update == "kept")  # type: ignore[return-value]


@eagerly()
def _output_gradients(
    run: Run, wanted: Sequence[Output], cotangents: Sequence[Cotangent]
) -> list[dict[Output, Tensor]]:
    """One activation-only backward pass for each loss, through what it reaches."""
    edges = [run.graph.edge(o) for o in wanted]
    found: list[dict[Output, Tensor]] = []
    for cotangent in cotangents:
        reached = [(o, c.to(o.dtype)) for o, c in zip(run.outputs, cotangent, strict=True) if c is not None]
        if not reached or not edges:
            found.append({})
            continue
        with full_precision(run.params[0].device.type):
            grads = torch.autograd.grad(
                [o for o, _ in reached], edges, [c for _, c in reached], retain_graph=True, allow_unused=True
            )
        found.append({o: g for o, g in zip(wanted, grads, strict=True) if g is not None})
    return found


def _in_one_task(read: Callable[[], Any]) -> Any:
    """Call a function inside a backward pass of nothing.

    Activation checkpointing computes a saved tensor again when it is read: once for all of them within one backward
    pass, once for each outside of any.
    """
    found: list[Any] = []
    with torch.enable_grad():
        start = torch.zeros((), requires_grad=True)
        end = start.clone()
    end.register_hook(lambda grad: found.append(read()))  # type: ignore[no-untyped-call]
    torch.autograd.grad(end, start)
    return found[0]


def _warn_of_isolated(run: Run, names: list[str]) -> None:
    isolated: dict[str, list[str]] = {}
    for target in run.targets:
        for use, _ in target.uses:
            if isinstance(use, OpaqueUse):
                isolated.setdefault(use.site.node.name(), []).append(repr(names[target.params[0]]))
    for op, users in isolated.items():
        warn(
            f"{op}, which uses {', '.join(sorted(set(users)))}, has no closed form for gradients of single samples: "
            "its own backward is run once for each of them."
        )
