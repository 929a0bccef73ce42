"""What runs in place of the tape where it cannot: ``vmap`` or a loop, if they give the embeddings of a plain pass.

An encoder that mixes samples is another model where each sample is encoded alone. So the embeddings are compared.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from harmony.engines.encoded import Trace
from harmony.engines.precision import full_precision
from harmony.engines.random import RandomState, replay, restore, snapshot
from harmony.engines.tape.errors import MixedSamplesError, UnsupportedError
from harmony.engines.tape.verify import Verify, due
from harmony.engines.trace import Inputs, detached, join, per_sample_semantics, trace_loop, trace_vmap
from harmony.warn import warn

Run = Callable[[Inputs], Trace]

ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
"""How far two ways to compute an embedding may differ, relative to its largest entry, by the lowest precision."""


def fall_back(inputs: Inputs, error: UnsupportedError | MixedSamplesError, verify: Verify) -> tuple[Trace, Run]:
    """Run the encoder by the first engine that can, and compare its embeddings with those of the plain pass.

    Args:
        inputs: The call. The random state is that of before the plain pass.
        error: Why the tape cannot record it; holds the embeddings of the plain pass.
        verify: How often embeddings are compared that take passes of their own.

    Returns:
        The run, and a function for more of them.

    Raises:
        MixedSamplesError: The embeddings differ.
        UnsupportedError: They cannot be compared, since the encoder draws random numbers.
    """
    state = snapshot(inputs.params)
    trace, engine, why_no_vmap = run_reference(inputs, error)
    compare(inputs, trace, state, error, error.leaves, verify)
    reason = f"the tape engine cannot record this encoder ({error})"
    if engine is trace_vmap:
        warn(f'{reason}: torch.func.vmap is used, which is exact and slower. Pass method="vmap" to silence this.')
    else:
        warn_of_loop(f"{reason}; {why_no_vmap}")

    def run(inputs: Inputs) -> Trace:
        state = snapshot(inputs.params)
        trace = engine(inputs)
        compare(inputs, trace, state, error, None, verify)
        return trace

    return trace, run


def compare(
    inputs: Inputs,
    trace: Trace,
    state: RandomState,
    error: UnsupportedError | MixedSamplesError,
    plain: Sequence[Any] | None,
    verify: Verify,
) -> None:
    """Compare the embeddings of a run that began at a random state with those of a plain pass."""
    drawn = not snapshot(inputs.params).equal(state)
    close = drawn
    if not drawn:
        plain = _plain(inputs) if plain is None else plain
        _require_equal(plain, trace.leaves, ROUNDING[torch.bfloat16], error)
        close = _equal(plain, trace.leaves, _rounding(inputs, plain))
    coarse = drawn or _rounding(inputs, trace.leaves) > ROUNDING[torch.float32]
    if (coarse and due(("fallback", error.signature, inputs.size), verify)) or not close:
        with replay(state):
            _compare_in_full_precision(inputs, error)


def _plain(inputs: Inputs) -> list[Any]:
    """Embeddings of an ordinary pass."""
    with torch.no_grad(), per_sample_semantics():
        return detached(inputs.call(inputs.params, inputs.batch)[0])


def run_reference(inputs: Inputs, reason: Exception | None = None) -> tuple[Trace, Run, str]:
    """Run the encoder by ``vmap``, or else by a loop; and why ``vmap`` cannot.

    Where neither can, although the batch could be encoded, a MixedSamplesError that is the ``reason`` says it better.
    """
    try:
        return _run_reference(inputs)
    except Exception as error:
        if isinstance(reason, MixedSamplesError):
            raise reason from error
        raise


def _run_reference(inputs: Inputs) -> tuple[Trace, Run, str]:
    state = snapshot(inputs.params)
    try:
        return trace_vmap(inputs), trace_vmap, ""
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError | NotImplementedError):
            raise
        restore(state)
        why = f"torch.func.vmap cannot batch it ({str(error).splitlines()[0]})"
        return trace_loop(inputs), trace_loop, why  # an encoder that is broken by itself raises its own error here


def warn_of_loop(reason: str) -> None:
    """Say that a loop is used, and why."""
    warn(
        f"{reason}: its per-sample gradients are computed in a Python loop over samples, which is exact and slow. "
        'Pass method="loop" to silence this.'
    )


def together_and_alone(inputs: Inputs) -> tuple[list[Any], list[Any]] | None:
    """Embeddings of the batch, and of its samples each encoded alone, without dropout and half precision.

    None where the encoder draws other random numbers, so that they cannot be compared.
    """
    state = snapshot(inputs.params)
    with _NoDropout(), _FullPrecision():
        plain = _plain(inputs)
        alone = join([_plain(inputs.narrow(slice(b, b + 1))) for b in range(inputs.size)])
    return (plain, alone) if snapshot(inputs.params).equal(state) else None


def _compare_in_full_precision(inputs: Inputs, error: UnsupportedError | MixedSamplesError) -> None:
    """Embeddings of samples alone must be those of the batch, but for the masks of dropout."""
    embeddings = together_and_alone(inputs)
    if embeddings is None:
        raise UnsupportedError(
            f"the tape engine cannot record this encoder ({error}), and it draws random numbers other than dropout, so "
            'that its embeddings cannot be compared with those of samples encoded alone. method="loop" takes each '
            "sample alone and compares nothing."
        ) from error
    _require_equal(*embeddings, min(_rounding(inputs, embeddings[0]), ROUNDING[torch.float32]), error)


def _rounding(inputs: Inputs, leaves: Sequence[Any]) -> float:
    """How far embeddings may differ in the lowest precision that is known of; an encoder may lower it itself."""
    device = inputs.params[0].device.type
    lowered = torch.is_autocast_enabled(device) if torch.amp.is_autocast_available(device) else False
    kinds = {p.dtype for p in inputs.params} | ({torch.get_autocast_dtype(device)} if lowered else set())
    kinds |= {leaf.dtype for leaf in leaves if isinstance(leaf, Tensor)}
    return max((ROUNDING[kind] for kind in kinds if kind in ROUNDING), default=0.0)


def _require_equal(plain: Sequence[Any], alone: Sequence[Any], rounding: float, error: Exception) -> None:
    """Raise a MixedSamplesError where embeddings of single samples are not those of the batch."""
    if not _equal(plain, alone, rounding):
        raise error if isinstance(error, MixedSamplesError) else MixedSamplesError.by_comparison() from error


def _equal(plain: Sequence[Any], alone: Sequence[Any], rounding: float) -> bool:
    for a, b in zip(plain, alone, strict=True):
        if isinstance(a, Tensor) and a.is_floating_point():
            scale = a.detach().abs().nan_to_num(0, 0, 0).amax() if a.numel() else a.new_zeros(())
            if not torch.allclose(a.double(), b.double(), rtol=0, atol=rounding * float(scale), equal_nan=True):
                return False
    return True


class _FullPrecision(TorchFunctionMode):
    """Inside, nothing is computed below float32: neither by autocast, nor by tensors and casts in half precision."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = Tensor.float if func in (Tensor.half, Tensor.bfloat16) else func
        args, kwargs = pytree.tree_map(_lifted, (args, kwargs or {}))
        with contextlib.ExitStack() as stack:
            for device in {x.device.type for x in pytree.tree_leaves(args) if isinstance(x, Tensor)}:
                stack.enter_context(full_precision(device))
            return func(*args, **kwargs)


_HALF = (torch.float16, torch.bfloat16)


def _lifted(x: Any) -> Any:
    """A tensor, or a precision, in float32 where it is in half precision."""
    if isinstance(x, Tensor):
        return x.float() if x.dtype in _HALF else x
    return torch.float32 if x in _HALF else x


_DROPOUT = {
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout),
    *(torch.dropout, torch.alpha_dropout, torch.feature_dropout, torch.feature_alpha_dropout),
}


_RECURRENT = {torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu}
_DROPS_AT = {F.scaled_dot_product_attention: 4, F.multi_head_attention_forward: 10} | dict.fromkeys(_RECURRENT, 5)
"""Functions that drop within, and which of their arguments tells how much; one further on for packed sequences."""


class _NoDropout(TorchFunctionMode):
    """Inside, nothing is dropped."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _DROPOUT:
            return args[0] if args else kwargs["input"]
        args = list(args)
        at = _DROPS_AT.get(func)
        if at is not None:
            if "dropout_p" in kwargs:
                kwargs = kwargs | {"dropout_p": 0.0}
            packed = len(args) > 1 and isinstance(args[1], Tensor) and args[1].dtype == torch.int64
            at += packed and func in _RECURRENT
            if len(args) > at:
                args[at] = 0.0
        return func(*args, **kwargs)
