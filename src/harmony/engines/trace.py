"""Three ways to run an encoder once and pull cotangents back: vmapped over samples, looped over samples, or whole.

All three take ``Inputs`` and return a ``Trace``. The fourth, and fast, way is in ``tape``.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from harmony.engines.eager import eagerly
from harmony.engines.encoded import Cotangent, PerSample, Reach, Trace
from harmony.engines.materialised import Materialised
from harmony.engines.paths import fresh_leaf, paths, require_paths
from harmony.engines.precision import full_precision
from harmony.engines.random import RandomState, replay, restore, snapshot
from harmony.engines.tape.graph import made_of_parameters
from harmony.modules import Buffer, OwnParameters


class Inputs(NamedTuple):
    """A flattened encoder call: parameter leaves, which of them are differentiated per sample, and the batch.

    ``label`` is the number of the Gram that each parameter belongs to, -1 for those that belong to none; ``labels`` are
    the names of the Grams, none where there is but one. ``together`` says that no sample is taken by itself, so that
    the encoder may mix them.
    """

    encode: Callable[[Any, Any], Any]
    names: list[str]
    params: list[Tensor]
    params_spec: Any
    label: list[int]
    labels: list[str]
    batch: list[Any]
    batch_spec: Any
    together: bool = False
    wrt: Any = None

    @property
    def selected(self) -> list[bool]:
        """For each parameter, whether it belongs to a Gram."""
        return [label >= 0 for label in self.label]

    @property
    def module(self) -> OwnParameters | None:
        """The module behind the call, if it is one."""
        return self.encode if isinstance(self.encode, OwnParameters) else None

    @property
    def refuse(self) -> Callable[[Tensor], None] | None:
        """What a module says of a trainable tensor that is none of its parameters; functions may close over them."""
        return None if self.module is None else self.module.require_own

    @property
    def mapped(self) -> list[bool]:
        """For each batch leaf, whether it has a sample axis (tensors with at least one axis do)."""
        return [isinstance(leaf, Tensor) and leaf.ndim > 0 for leaf in self.batch]

    @property
    def size(self) -> int:
        """B, the number of samples."""
        return next(len(leaf) for leaf, mapped in zip(self.batch, self.mapped, strict=True) if mapped)

    def state(self, before: "State | None" = None) -> "State":
        """What a run of the encoder may change: random numbers, and the buffers of a module."""
        buffers = [] if self.module is None else self.module.buffers([] if before is None else before.buffers)
        return State(snapshot(self.params), buffers)

    @contextlib.contextmanager
    def replaying(self, state: "State") -> Iterator[None]:
        """Inside, the encoder runs from a state of before; outside, nothing has happened."""
        with replay(state.random), self.with_buffers(state):
            yield

    def with_buffers(self, state: "State") -> contextlib.AbstractContextManager[None]:
        """As `replaying`, but random numbers go on."""
        return contextlib.nullcontext() if self.module is None else self.module.replaying(state.buffers)

    def versions(self) -> list[int]:
        """How often each leaf of the batch has been written to."""
        return [leaf._version if isinstance(leaf, Tensor) and not leaf.is_inference() else 0 for leaf in self.batch]

    def require_versions(self, versions: Sequence[int]) -> None:
        """Raise a ValueError where the encoder has changed a leaf of the batch, of which it will be run again."""
        paths_of = [
            path for path, _ in pytree.tree_leaves_with_path(pytree.tree_unflatten(self.batch, self.batch_spec))
        ]
        for path, before, now in zip(paths_of, versions, self.versions(), strict=True):
            if before != now:
                raise ValueError(
                    f"encode writes into batch{pytree.keystr(path)}, and has to be run on it again (in chunks, or by "
                    "another engine): it would see what it wrote. Write into a copy (x = x.clone()) instead."
                )

    def narrow(self, part: slice) -> "Inputs":
        """The same call on a slice of the samples."""
        batch = [leaf[part] if m else leaf for leaf, m in zip(self.batch, self.mapped, strict=True)]
        return self._replace(batch=batch, together=False)

    def picked(self, samples: Tensor) -> "Inputs":
        """The same call on some of the samples."""
        batch = [leaf[samples.to(leaf.device)] if m else leaf for leaf, m in zip(self.batch, self.mapped, strict=True)]
        return self._replace(batch=batch, together=False)

    def doubled(self) -> "Inputs":
        """The same call on two copies of the only sample."""
        batch = [torch.cat([leaf, leaf]) if m else leaf for leaf, m in zip(self.batch, self.mapped, strict=True)]
        return self._replace(batch=batch)

    def tracked_params(self) -> list[Tensor]:
        """Parameters that autograd follows: the module's own, or fresh leaves."""
        own = self.module is not None and self.module.owns(self.params)
        return list(self.params) if own else [fresh_leaf(p) for p in self.params]

    def call(self, params: Sequence[Tensor], batch: Sequence[Any]) -> tuple[list[Any], Any]:
        """Encode, and flatten the embeddings."""
        output = self.encode(
            pytree.tree_unflatten(list(params), self.params_spec), pytree.tree_unflatten(list(batch), self.batch_spec)
        )
        return pytree.tree_flatten(output)


class State(NamedTuple):
    """What a run of the encoder may change.

    Attributes:
        random: State of the generators.
        buffers: Buffers of a module; none for a function, whose buffers nobody knows.
    """

    random: RandomState
    buffers: list[Buffer]


def trace_vmap(inputs: Inputs) -> Trace:
    """Run the encoder with ``torch.func.vmap``: every sample sees its own (expanded) selected parameters."""
    n, mapped = inputs.size, inputs.mapped
    structure: dict[str, Any] = {}

    def one(params: list[Tensor], samples: list[Tensor]) -> tuple[Tensor, ...]:
        rest = iter(samples)
        batch = [next(rest)[None] if m else leaf for leaf, m in zip(inputs.batch, mapped, strict=True)]
        leaves, structure["spec"] = inputs.call(params, batch)
        check_leaves(leaves, structure["spec"], 1)
        structure["constants"] = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        structure["tensors"] = [isinstance(leaf, Tensor) for leaf in leaves]
        return tuple(leaf[0] for leaf in leaves if isinstance(leaf, Tensor))

    def run(params: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        samples = [leaf for leaf, m in zip(inputs.batch, mapped, strict=True) if m]
        dims = ([0 if s else None for s in inputs.selected], [0] * len(samples))
        outputs = vmap(one, in_dims=dims, randomness="different")(params, samples)
        structure["tracked"] = [leaf.requires_grad for leaf in outputs]
        require_tracked(structure["tracked"])
        tracked = [leaf for leaf in outputs if leaf.requires_grad]
        structure["reach"] = reach(tracked, params)
        return tracked, [leaf for leaf in outputs if not leaf.requires_grad]

    params = [p.detach() for p in inputs.params]
    primals = [p.expand(n, *p.shape) if s else p for p, s in zip(params, inputs.selected, strict=True)]
    # Fused attention has no batching rule for its backward on every device; the math backend has.
    with torch.no_grad(), per_sample_semantics(vmapped=True), sdpa_kernel(SDPBackend.MATH):
        outputs, pull_outputs, others = vjp(run, primals, has_aux=True)  # type: ignore[misc]

    tracked_leaves, other_leaves, flags = iter(outputs), iter(others), iter(structure["tracked"])
    leaves, tracked = [], []
    for constant, is_tensor in zip(structure["constants"], structure["tensors"], strict=True):
        tracked.append(next(flags) if is_tensor else False)
        leaves.append(next(tracked_leaves if tracked[-1] else other_leaves) if is_tensor else constant)

    def rows(cotangent: Cotangent) -> list[Tensor]:
        filled = [torch.zeros_like(o) if c is None else c.to(o.dtype) for c, o in zip(cotangent, outputs, strict=True)]
        with torch.no_grad():
            (grads,) = pull_outputs(filled)
        return list(grads)

    return _from_rows(leaves, structure["spec"], tracked, rows, lambda: structure["reach"], inputs)


def trace_batch(inputs: Inputs, inspect: Callable[["Pass"], None] | None = None) -> Trace:
    """Run the encoder once on the whole batch with ordinary autograd: nothing is differentiated per sample.

    Args:
        inputs: The call.
        inspect: Sees the run, and may raise.
    """
    params, size, state = inputs.tracked_params(), inputs.size, snapshot(inputs.params)
    run = run_batch(inputs, params)
    behind = paths(run.outputs)
    require_paths(behind, params, inputs.names, run.hidden, inputs.refuse)
    if inspect is not None:
        inspect(run)
    if size == 1 and any("BatchNorm" in name for name in behind.ops):
        # Torch misreads a gradient of one sample with channels last: give it two.
        restore(state)
        run = run_batch(inputs.doubled(), params)
    outputs = run.outputs

    def pull(cotangent: Cotangent) -> list[Tensor]:
        padded = [
            c if c is None or len(c) == len(o) else torch.cat([c, torch.zeros_like(c)])
            for c, o in zip(cotangent, outputs, strict=True)
        ]
        return pull_batch(outputs, params, padded)

    def per_sample(cotangents: Sequence[Cotangent], fused: bool) -> PerSample:
        raise AssertionError("a plain run has no per-sample gradients")

    leaves = [leaf[:size] if isinstance(leaf, Tensor) else leaf for leaf in detached(run.leaves)]
    return Trace(leaves, run.spec, run.tracked, pull, per_sample, lambda: reach(outputs, params))


def reach(outputs: Sequence[Tensor], params: Sequence[Tensor]) -> Reach:
    """Which parameters each output reaches, by the graph alone."""
    behind = [set(map(id, paths([output]).leaves)) for output in outputs]
    return [[id(p) in leaves for p in params] for leaves in behind]


def either(reaches: Iterable[Reach]) -> Reach:
    """What embeddings reach in any of several runs, of other samples."""
    return [[any(of_runs) for of_runs in zip(*of_leaf, strict=True)] for of_leaf in zip(*reaches, strict=True)]


def of_one_group(trace: Trace, inputs: Inputs) -> Trace:
    """A run on samples that are one group, or a part of one: its gradients are those of ordinary backward passes."""

    def per_sample(cotangents: Sequence[Cotangent], fused: bool) -> PerSample:
        grads = [[g[None] for g, s in zip(trace.pull(c), inputs.selected, strict=True) if s] for c in cotangents]
        return Materialised(grads, inputs.label, cotangents, trace.pull, inputs.size)

    return trace._replace(per_sample=per_sample)


class Pass(NamedTuple):
    """An ordinary pass of the encoder.

    Attributes:
        leaves: The flattened embeddings, with their graph.
        spec: Tree specification of the embeddings.
        tracked: For each leaf, whether it depends on the parameters.
        hidden: Parameters that were used where no gradient was recorded.
        params: The parameters that autograd follows.
    """

    leaves: list[Any]
    spec: Any
    tracked: list[bool]
    hidden: set[Tensor]
    params: list[Tensor]

    @property
    def outputs(self) -> list[Tensor]:
        """The leaves that depend on the parameters."""
        return [leaf for leaf, t in zip(self.leaves, self.tracked, strict=True) if t]


def run_batch(inputs: Inputs, params: list[Tensor]) -> Pass:
    """Encode with ordinary autograd by parameters that require a gradient."""
    names = {p: name for p, name in zip(params, inputs.names, strict=True)}
    with torch.enable_grad(), per_sample_semantics(names, together=inputs.together, size=inputs.size) as ops:
        leaves, spec = inputs.call(params, inputs.batch)
    check_leaves(leaves, spec, inputs.size)
    tracked = [isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves]
    require_tracked(tracked)
    return Pass(leaves, spec, tracked, ops.hidden, params)


@eagerly()
def pull_batch(outputs: list[Tensor], params: list[Tensor], cotangent: Cotangent) -> list[Tensor]:
    """One ordinary backward pass: a gradient per parameter."""
    reached = [(o, c.to(o.dtype)) for o, c in zip(outputs, cotangent, strict=True) if c is not None]
    if not reached:
        return [torch.zeros_like(p) for p in params]
    with full_precision(params[0].device.type):  # the backward pass follows the forward's choices, not autocast's
        grads = torch.autograd.grad(
            [o for o, _ in reached], params, [c for _, c in reached], retain_graph=True, materialize_grads=True
        )
    return list(grads)


def detached(leaves: list[Any]) -> list[Any]:
    """The leaves, cut off from the graph."""
    return [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def trace_loop(inputs: Inputs) -> Trace:
    """Run the encoder sample by sample in a Python loop: slow, and exact for whatever autograd can differentiate."""
    traces = [trace_batch(inputs.narrow(slice(b, b + 1))) for b in range(inputs.size)]
    first, by_sample = traces[0], inputs.selected
    leaves = join([trace.leaves for trace in traces])

    def rows(cotangent: Cotangent) -> list[Tensor]:
        rows = [trace.pull([None if c is None else c[b : b + 1] for c in cotangent]) for b, trace in enumerate(traces)]
        columns = zip(*rows, strict=True)
        return [
            torch.stack(column) if s else torch.stack(column).sum(0)
            for column, s in zip(columns, by_sample, strict=True)
        ]

    reaches = lambda: either(trace.reaches() for trace in traces)  # noqa: E731
    return _from_rows(leaves, first.spec, first.tracked, rows, reaches, inputs)


def _from_rows(
    leaves: list[Any],
    spec: Any,
    tracked: list[bool],
    rows: Callable[[Cotangent], list[Tensor]],
    reaches: Callable[[], Reach],
    inputs: Inputs,
) -> Trace:
    """A trace out of a function that gives gradients (n, *shape) of selected parameters, (*shape) of the others."""
    by_sample = inputs.selected

    def pull(cotangent: Cotangent) -> list[Tensor]:
        return [g.sum(0) if s else g for g, s in zip(rows(cotangent), by_sample, strict=True)]

    def per_sample(cotangents: Sequence[Cotangent], fused: bool) -> PerSample:
        grads = [[g for g, s in zip(rows(c), inputs.selected, strict=True) if s] for c in cotangents]
        return Materialised(grads, inputs.label, cotangents, pull, inputs.size)

    return Trace(leaves, spec, tracked, pull, per_sample, reaches)


def join(parts: Sequence[list[Any]]) -> list[Any]:
    """Concatenate the leaves of consecutive chunks of samples."""
    return [torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0] for leaves in zip(*parts, strict=True)]


def check_leaves(leaves: list[Any], spec: Any, n: int) -> None:
    """Raise a ValueError unless every tensor among the embeddings has ``n`` samples on its leading axis."""
    paths = [path for path, _ in pytree.tree_leaves_with_path(pytree.tree_unflatten(leaves, spec))]
    for path, leaf in zip(paths, leaves, strict=True):
        if isinstance(leaf, Tensor) and (leaf.ndim == 0 or leaf.shape[0] != n):
            raise ValueError(
                f"encode was given {n} sample(s), but its output{pytree.keystr(path)} has shape {tuple(leaf.shape)}: "
                f"expected a leading axis of {n}. Return one row per sample; what samples share belongs in losses."
            )


def require_tracked(tracked: list[bool]) -> None:
    """Raise a ValueError where no embedding depends on the parameters."""
    if not any(tracked):
        raise ValueError("no output of encode depends on params: there is no gradient to take.")


class _EncoderOps(TorchFunctionMode):
    """Watch over the ops of an encoder.

    Batch normalisation in training mode mixes samples, so a gradient per sample does not exist: it is refused. An
    embedding keeps its padding row free of gradients even under ``vmap``, whose rule forgets ``padding_idx``.
    """

    def __init__(self, names: Mapping[Tensor, str], vmapped: bool, together: bool, size: int) -> None:
        super().__init__()
        self.names = names
        self.vmapped = vmapped
        self.together = together
        self.size = size
        self.hidden: set[Tensor] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.names and not torch.is_grad_enabled():
            tensors = pytree.tree_leaves((args, kwargs))
            self.hidden |= {x for x in tensors if isinstance(x, Tensor) and x in self.names}
        if not self.together:
            self._require_apart(func, args, kwargs)
        with _unfused() if func is torch.lstm else contextlib.nullcontext():
            output = func(*args, **kwargs)
        if self.vmapped and func is F.embedding:
            padding = kwargs.get("padding_idx", args[2] if len(args) > 2 else None)
            weight = kwargs.get("weight", args[1] if len(args) > 1 else None)
            if padding is not None and weight is not None:
                padded = kwargs.get("input", args[0] if args else None) == padding % weight.shape[0]
                return torch.where(padded.unsqueeze(-1), output.detach(), output)
        return output

    def _require_apart(self, func: Any, args: Any, kwargs: Any) -> None:
        """Raise where an op is known to mix the samples."""

        def option(name: str, at: int) -> Any:
            return kwargs.get(name, args[at] if len(args) > at else None)

        if func in (F.batch_norm, torch.batch_norm) and option("training", 5):
            x, weight = option("input", 0), option("weight", 3)
            # Samples may lie among the channels, and weights may be standardised by it: the graph will tell.
            instances = self.size > 1 and x.shape[0] == 1
            if self.vmapped or not (instances or made_of_parameters(x, self.names)):
                raise BatchStatisticsError(tuple(x.shape), self.names.get(weight, "") if weight is not None else "")
        if func in _EMBEDDINGS and option("scale_grad_by_freq", _EMBEDDINGS[func]):
            raise ValueError(
                "encode calls an embedding with scale_grad_by_freq=True: it counts words over the whole batch, so a "
                "gradient per sample does not exist. Set it to False. Over the batch as one group (group_size=B), and "
                'in feature space (space="features"), it is allowed, without chunks.'
            )


_EMBEDDINGS = {F.embedding: 5, F.embedding_bag: 5, torch.embedding: 3, torch.embedding_bag: 3}
"""Where they take ``scale_grad_by_freq``."""


@contextlib.contextmanager
def _unfused() -> Iterator[None]:
    """Inside, a recurrent layer on the CPU is made of ordinary ops: a fused one would be run once for each sample."""
    fused = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(fused)


class BatchStatisticsError(ValueError):
    """Batch normalisation in training mode inside the encoder."""

    def __init__(self, shape: tuple[int, ...], parameter: str) -> None:
        module = f" {parameter.rpartition('.')[0]!r} (parameter {parameter!r})" if parameter else ""
        super().__init__(
            f"encode calls batch normalisation{module} in training mode on an input of shape {shape}: it mixes the "
            "samples of the batch, so a gradient per sample does not exist. Move the layer into the losses stage "
            "(loss_params), put it in eval mode, or use LayerNorm or GroupNorm. Over the batch as one group "
            '(group_size=B), and in feature space (space="features"), it is allowed, without chunks.'
        )


@contextlib.contextmanager
def per_sample_semantics(
    names: Mapping[Tensor, str] | None = None, *, vmapped: bool = False, together: bool = False, size: int = 1
) -> Iterator["_EncoderOps"]:
    """Inside, encoders keep samples apart, and every op is recorded by itself.

    No batch statistics, unless ``together``; no inference-only fast path, which has no derivative; nothing compiled,
    whose graph can be gone through but once.
    """
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with eagerly(), _EncoderOps(names or {}, vmapped, together, size) as ops:
            yield ops
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
