"""One ordinary forward pass of the encoder, and the ops that it must not contain."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from harmony.engines.call import EncoderCall, leaf_paths
from harmony.engines.eager import eagerly
from harmony.engines.paths import Paths, paths, require_paths
from harmony.engines.precision import full_precision
from harmony.engines.run import Cotangent, Reach
from harmony.engines.tape.graph import made_of_parameters


class ForwardPass(NamedTuple):
    """An ordinary pass of the encoder, with its graph.

    Attributes:
        leaves: The flattened embeddings.
        spec: Their tree specification.
        tracked: For each leaf, whether it depends on the parameters.
        hidden: Parameters that were used where no gradient was recorded.
        params: The parameters that autograd follows.
        hooked: Whether a tensor got a hook, which may change its gradient.
    """

    leaves: list[Any]
    spec: Any
    tracked: list[bool]
    hidden: set[Tensor]
    params: list[Tensor]
    hooked: bool

    @property
    def outputs(self) -> list[Tensor]:
        """The leaves that depend on the parameters."""
        return [leaf for leaf, tracked in zip(self.leaves, self.tracked, strict=True) if tracked]

    @property
    def detached(self) -> list[Any]:
        """The leaves, cut off from the graph."""
        return detached(self.leaves)

    def reaches(self) -> Reach:
        """Which parameters each output reaches."""
        return reach(self.outputs, self.params)

    def pull(self, cotangent: Cotangent) -> list[Tensor]:
        """One ordinary backward pass: a gradient for each parameter."""
        grads = pull_back(self.outputs, cotangent, self.params)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(self.params, grads, strict=True)]

    def require_paths(self, behind: Paths, call: EncoderCall) -> None:
        """Raise a ValueError where parameters are used behind autograd's back; ``behind`` is what the graph holds."""
        refuse = None if call.module is None else call.module.require_own  # functions may close over parameters
        require_paths(behind, self.params, call.names, self.hidden, refuse)


def pull_back(outputs: Sequence[Tensor], cotangent: Cotangent, inputs: Sequence[Any]) -> list[Tensor | None]:
    """One backward pass from outputs to tensors, or edges, behind them; None where no gradient arrives."""
    sent = [(output, c.to(output.dtype)) for output, c in zip(outputs, cotangent, strict=True) if c is not None]
    return pull_edges([root for root, _ in sent], [grad for _, grad in sent], inputs)


@eagerly()
def pull_edges(roots: Sequence[Any], grads: Sequence[Tensor], inputs: Sequence[Any]) -> list[Tensor | None]:
    """As ``pull_back``, from tensors or edges that all get a gradient."""
    if not roots or not inputs:
        return [None] * len(inputs)
    with full_precision(grads[0].device.type):  # the backward pass follows the forward pass, not autocast
        return list(torch.autograd.grad(roots, inputs, grads, retain_graph=True, allow_unused=True))


def forward(call: EncoderCall) -> ForwardPass:
    """Encode with ordinary autograd."""
    params = call.tracked_params()
    names = dict(zip(params, call.names, strict=True))
    with torch.enable_grad(), per_sample_semantics(names, together=call.together, size=call.size) as ops:
        leaves, spec = call.run(params, call.batch)
    check_leaves(leaves, spec, call.size)
    tracked = [isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves]
    require_tracked(tracked)
    return ForwardPass(leaves, spec, tracked, ops.hidden, params, ops.hooked)


def embed(call: EncoderCall) -> list[Any]:
    """The embeddings, without a graph."""
    with torch.no_grad(), per_sample_semantics():
        return detached(call.run(call.params, call.batch)[0])


def reach(outputs: Sequence[Tensor], params: Sequence[Tensor]) -> Reach:
    """Which parameters each output reaches, by the graph alone."""
    behind = [set(map(id, paths([output]).leaves)) for output in outputs]
    return [[id(p) in leaves for p in params] for leaves in behind]


def detached(leaves: Iterable[Any]) -> list[Any]:
    """Leaves, cut off from the graph."""
    return [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def join(parts: Sequence[list[Any]]) -> list[Any]:
    """Concatenate the leaves of consecutive chunks of samples."""
    return [torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0] for leaves in zip(*parts, strict=True)]


def check_leaves(leaves: list[Any], spec: Any, size: int) -> None:
    """Raise a ValueError unless every tensor among the embeddings has ``size`` samples on its leading axis."""
    for path, leaf in zip(leaf_paths(pytree.tree_unflatten(leaves, spec)), leaves, strict=True):
        if isinstance(leaf, Tensor) and (leaf.ndim == 0 or leaf.shape[0] != size):
            raise ValueError(
                f"encode was given {size} sample(s), but its output{path} has shape {tuple(leaf.shape)}: expected a "
                f"leading axis of {size}. Return one row per sample; what samples share belongs in losses."
            )


def require_tracked(tracked: list[bool]) -> None:
    """Raise a ValueError where no embedding depends on the parameters."""
    if not any(tracked):
        raise ValueError("no output of encode depends on params: there is no gradient to take.")


@contextlib.contextmanager
def per_sample_semantics(
    names: Mapping[Tensor, str] | None = None, *, vmapped: bool = False, together: bool = False, size: int = 1
) -> Iterator["_EncoderOps"]:
    """Inside, encoders keep samples apart, and every op is recorded by itself.

    Batch statistics are refused, unless ``together``. The inference-only fast path of attention has no derivative, and
    the graph of compiled code can be walked only once: both are off.
    """
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with eagerly(), _EncoderOps(names or {}, vmapped, together, size) as ops:
            yield ops
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


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


_EMBEDDINGS = {F.embedding: 5, F.embedding_bag: 5, torch.embedding: 3, torch.embedding_bag: 3}
"""Where they take ``scale_grad_by_freq``."""

_WATCHED = {F.batch_norm, torch.batch_norm, torch.lstm, torch.Tensor.register_hook, *_EMBEDDINGS}
"""What is looked at where gradients are recorded; everything else passes as it is, since a model calls hundreds."""


class _EncoderOps(TorchFunctionMode):
    """Watch the ops of an encoder: refuse those that mix samples, and note parameters used without a graph."""

    def __init__(self, names: Mapping[Tensor, str], vmapped: bool, together: bool, size: int) -> None:
        super().__init__()
        self.names = names
        self.vmapped = vmapped
        self.together = together
        self.size = size
        self.hidden: set[Tensor] = set()
        self.hooked = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _WATCHED and torch.is_grad_enabled():
            return func(*args, **kwargs)
        if self.names and not torch.is_grad_enabled():
            tensors = pytree.tree_leaves((args, kwargs))
            self.hidden |= {x for x in tensors if isinstance(x, Tensor) and x in self.names}
        hooks = func is torch.Tensor.register_hook
        self.hooked |= hooks
        if hooks and self.vmapped:
            raise RuntimeError('torch.func calls no hook of a tensor: pass engine=harmony.Engine(method="loop")')
        if not self.together:
            self._require_apart(func, args, kwargs)
        with _unfused() if func is torch.lstm else contextlib.nullcontext():
            output = func(*args, **kwargs)
        padding = _option(args, kwargs, "padding_idx", 2) if self.vmapped and func is F.embedding else None
        if padding is not None:  # the batching rule of an embedding forgets that this row has no gradient
            weight, words = _option(args, kwargs, "weight", 1), _option(args, kwargs, "input", 0)
            return torch.where((words == padding % weight.shape[0]).unsqueeze(-1), output.detach(), output)
        return output

    def _require_apart(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Raise where an op is known to mix the samples."""
        if func in (F.batch_norm, torch.batch_norm) and _option(args, kwargs, "training", 5):
            x, weight = _option(args, kwargs, "input", 0), _option(args, kwargs, "weight", 3)
            # Samples may lie among the channels, and weights may be standardised: then the graph tells.
            instances = self.size > 1 and x.shape[0] == 1
            if self.vmapped or not (instances or made_of_parameters(x, self.names)):
                raise BatchStatisticsError(tuple(x.shape), self.names.get(weight, "") if weight is not None else "")
        if func in _EMBEDDINGS and _option(args, kwargs, "scale_grad_by_freq", _EMBEDDINGS[func]):
            raise ValueError(
                "encode calls an embedding with scale_grad_by_freq=True: it counts words over the whole batch, so a "
                "gradient per sample does not exist. Set it to False. Over the batch as one group (group_size=B), and "
                'in feature space (space="features"), it is allowed, without chunks.'
            )


def _option(args: Sequence[Any], kwargs: dict[str, Any], name: str, position: int) -> Any:
    """An argument of a call, by name or position; None where it is not given."""
    return kwargs.get(name, args[position] if len(args) > position else None)


@contextlib.contextmanager
def _unfused() -> Iterator[None]:
    """Inside, a recurrent layer on the CPU is made of ordinary ops: a fused one would run once for each sample."""
    fused = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(fused)
