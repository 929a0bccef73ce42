"""Run the encoder once on the whole batch, and find in its autograd graph all that per-sample gradients need."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harmony.engines.call import EncoderCall
from harmony.engines.eager import eagerly
from harmony.engines.forward import ForwardPass, detached, forward
from harmony.engines.options import Engine
from harmony.engines.precision import full_precision
from harmony.engines.run import Cotangent, PerSample, pull_mixed
from harmony.engines.run import Run as Trace
from harmony.engines.tape.errors import MixedSamplesError, UnsupportedError
from harmony.engines.tape.fill import Storage
from harmony.engines.tape.graph import Graph, Output, walk
from harmony.engines.tape.plan import Piece, Update, pieces, work
from harmony.engines.tape.recording import Recording
from harmony.engines.tape.sample_axis import SampleAxis, sample_axis
from harmony.engines.tape.target import Target, find_targets
from harmony.engines.tape.use import Isolated
from harmony.engines.tape.verify import due, verify, verify_rearrangements
from harmony.warn import warn

BLOCKS = 4
"""Blocks of groups that a step is cut into at most, to use per-sample gradients twice: each calls every op again."""


class Run(NamedTuple):
    """A run on the tape: the graph, where the samples lie in it, and the shared tensors it uses."""

    forward: ForwardPass
    graph: Graph
    places: SampleAxis
    signature: Any
    targets: list[Target]
    size: int

    @property
    def params(self) -> list[Tensor]:
        """The parameters that autograd follows."""
        return self.forward.params

    @property
    def outputs(self) -> list[Tensor]:
        """The embedding leaves that depend on the parameters, with their graph."""
        return self.forward.outputs


@eagerly()
def record(inputs: EncoderCall) -> Run:
    """Encode with ordinary autograd and read the graph.

    Raises:
        MixedSamplesError: The encoder mixes samples.
        UnsupportedError: It cannot be recorded.
    """
    run = forward(inputs)
    params = run.params
    names = dict(zip(params, inputs.names, strict=True))
    graph = None
    try:
        graph = walk(run.outputs)
        run.require_paths(graph.paths(), inputs)
        places, signature = sample_axis(graph, run.outputs, inputs.batch, inputs.size, names)
        targets = _in_one_task(lambda: find_targets(graph, places, params))
    except (UnsupportedError, MixedSamplesError) as error:
        error.leaves = detached(run.leaves)
        error.signature = inputs.size, None if graph is None else graph.signature()
        raise
    return Run(run, graph, places, signature, targets, inputs.size)


def trace_tape(inputs: EncoderCall, options: Engine, storage: Storage) -> Trace:
    """Run the encoder on the tape; runs that follow one another may share their working storage."""
    run = record(inputs)
    _warn_of_isolated(run, inputs.names)
    return trace_of(run, inputs, options, storage)


def trace_of(run: Run, inputs: EncoderCall, options: Engine, storage: Storage) -> Trace:
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
        return Recording(
            chosen, grads, run.places.layouts, run.params, inputs.size,
            options.memory, update, storage, max(inputs.label) + 1,
            backward=lambda weights: pull_mixed(pull, cotangents, weights, inputs.label),
        )  # fmt: skip

    pull, result = run.forward.pull, run.forward
    return Trace(result.detached, result.spec, result.tracked, pull, per_sample, result.reaches)


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
    run: Run, inputs: EncoderCall, options: Engine, reached: list[set[int]], fused: bool
) -> tuple[Update, list[Piece]]:
    """Where the update comes from, and what is computed for each parameter."""
    group = min(inputs.group_size, inputs.size)
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
    return update, pieces(targets, run.params, inputs.label, reached, group, update == "kept")


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
            if isinstance(use, Isolated):
                isolated.setdefault(use.site.node.name(), []).append(repr(names[target.params[0]]))
    for op, users in isolated.items():
        warn(
            f"{op}, which uses {', '.join(sorted(set(users)))}, has no closed form for gradients of single samples: "
            "its own backward is run once for each of them."
        )
