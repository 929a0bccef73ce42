"""What runs where the tape cannot: ``vmap`` or a loop, if they give the embeddings of a plain pass.

An encoder that mixes samples is another model where each sample is encoded alone. So the embeddings are compared.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harmony.engines.call import EncoderCall, State
from harmony.engines.errors import HookedTensorError, MixedSamplesError, UnsupportedError
from harmony.engines.forward import ForwardPass, embed, join
from harmony.engines.modes import FullPrecision, NoDropout
from harmony.engines.options import Verify
from harmony.engines.random import RandomState, replay, restore, snapshot
from harmony.engines.reference import run_loop, run_plain, run_vmap
from harmony.engines.run import Run
from harmony.engines.tape.engine import require_apart
from harmony.engines.verification import due
from harmony.warn import warn

Error = MixedSamplesError | UnsupportedError

ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
"""How far two ways to compute the same may differ, relative to the largest entry, by the lowest precision."""


class Runner(NamedTuple):
    """A way to run the encoder, again and again.

    Attributes:
        run: A call -> its run.
        ordinary: Whether it is one ordinary pass, so that a pass without a graph draws the same random numbers.
    """

    run: Callable[[EncoderCall], Run]
    ordinary: bool = False


def fall_back(call: EncoderCall, error: Error, verify: Verify) -> tuple[Run, Runner]:
    """Run the encoder by the first slow engine that can, and compare its embeddings with those of the plain pass.

    Args:
        call: The call. The random state is that of before the plain pass.
        error: Why the tape cannot record it; holds the embeddings of the plain pass.
        verify: How often embeddings are compared that take passes of their own.

    Raises:
        MixedSamplesError: The embeddings differ.
        UnsupportedError: They cannot be compared, since the encoder draws random numbers.
    """
    state = snapshot(call.params)
    result, engine, why_no_vmap = run_reference(call, error)
    compare(call, result, state, error, error.leaves, verify)
    reason = f"the tape engine cannot record this encoder ({error})"
    if engine is run_vmap:
        warn(
            f"{reason}: torch.func.vmap is used, which is exact and slower. "
            'Pass engine=harmony.Engine(method="vmap") to silence this.'
        )
    else:
        warn_of_loop(f"{reason}; {why_no_vmap}")

    def run(call: EncoderCall) -> Run:
        state = snapshot(call.params)
        result = engine(call)
        compare(call, result, state, error, None, verify)
        return result

    return result, Runner(run)


def run_reference(call: EncoderCall, reason: Error | None = None) -> tuple[Run, Callable[[EncoderCall], Run], str]:
    """Run the encoder by ``vmap``, or else by a loop; and why ``vmap`` cannot.

    Where neither can, although the batch could be encoded, a MixedSamplesError that is the ``reason`` says it better.
    """
    if isinstance(reason, HookedTensorError):
        return run_loop(call), run_loop, "torch.func.vmap calls none"
    state = snapshot(call.params)
    try:
        try:
            return run_vmap(call), run_vmap, ""
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError | NotImplementedError):
                raise
            restore(state)
            why = f"torch.func.vmap cannot batch it ({str(error).splitlines()[0]})"
            return run_loop(call), run_loop, why  # an encoder that is broken by itself raises its own error here
    except Exception as error:
        if isinstance(reason, MixedSamplesError):
            raise reason from error
        raise


def warn_of_loop(reason: str) -> None:
    """Say that a loop is used, and why."""
    warn(
        f"{reason}: its per-sample gradients are computed in a Python loop over samples, which is exact and slow. "
        'Pass engine=harmony.Engine(method="loop") to silence this.'
    )


def run_apart(call: EncoderCall, verify: Verify) -> Run:
    """Run the encoder once on a chunk with ordinary autograd, and require that it keeps the samples apart.

    In chunks, an encoder that mixes samples is another model. ``verify="never"`` looks at nothing.

    Raises:
        MixedSamplesError: The encoder mixes the samples of the chunk.
        UnsupportedError: The graph does not tell, and embeddings cannot be compared.
    """
    if verify == "never" or call.size == 1:  # a lone sample has nobody to be mixed with
        return run_plain(call)
    state = call.state()
    return run_plain(call, lambda result: _require_apart(result, call, state, verify))


def require_pair_apart(call: EncoderCall, verify: Verify) -> None:
    """``run_apart`` on the first two samples together, where all chunks are of one sample."""
    with call.replaying(call.state()):
        run_apart(call.select(slice(0, 2)), verify)


def _require_apart(result: ForwardPass, call: EncoderCall, state: State, verify: Verify) -> None:
    """Raise unless the graph keeps samples apart, or their embeddings are the same when each is encoded alone."""
    try:
        require_apart(result, call)
    except (MixedSamplesError, UnsupportedError) as error:
        with call.replaying(state):
            before = snapshot(call.params)
            alone, _, _ = run_reference(call, error)
            compare(call, alone, before, error, result.detached, verify)


def compare(
    call: EncoderCall, run: Run, state: RandomState, error: Error, plain: Sequence[Any] | None, verify: Verify
) -> None:
    """Compare the embeddings of a run that began at a random state with those of a plain pass."""
    drawn = not snapshot(call.params).equal(state)
    close = drawn
    if not drawn:
        plain = embed(call) if plain is None else plain
        _require_equal(plain, run.leaves, ROUNDING[torch.bfloat16], error)
        close = _equal(plain, run.leaves, _rounding(call, plain))
    coarse = drawn or _rounding(call, run.leaves) > ROUNDING[torch.float32]
    if (coarse and due(("fallback", error.signature, call.size), verify)) or not close:
        with replay(state):
            _compare_in_full_precision(call, error)


def together_and_alone(call: EncoderCall) -> tuple[list[Any], list[Any]] | None:
    """Embeddings of the batch, and of its samples each encoded alone, without dropout and half precision.

    None where the encoder draws other random numbers, so that they cannot be compared.
    """
    state = snapshot(call.params)
    with NoDropout(), FullPrecision():
        together = embed(call)
        alone = join([embed(call.select(slice(b, b + 1))) for b in range(call.size)])
    return (together, alone) if snapshot(call.params).equal(state) else None


def _compare_in_full_precision(call: EncoderCall, error: Error) -> None:
    """Embeddings of samples alone must be those of the batch, but for the masks of dropout."""
    embeddings = together_and_alone(call)
    if embeddings is None:
        raise UnsupportedError(
            f"the tape engine cannot record this encoder ({error}), and it draws random numbers other than dropout, so "
            "that its embeddings cannot be compared with those of samples encoded alone. "
            'engine=harmony.Engine(method="loop") takes each sample alone and compares nothing.'
        ) from error
    _require_equal(*embeddings, min(_rounding(call, embeddings[0]), ROUNDING[torch.float32]), error)


def _rounding(call: EncoderCall, leaves: Sequence[Any]) -> float:
    """How far embeddings may differ in the lowest precision that is known of; an encoder may lower it itself."""
    device = call.params[0].device.type
    lowered = torch.is_autocast_enabled(device) if torch.amp.is_autocast_available(device) else False
    kinds = {p.dtype for p in call.params} | ({torch.get_autocast_dtype(device)} if lowered else set())
    kinds |= {leaf.dtype for leaf in leaves if isinstance(leaf, Tensor)}
    return max((ROUNDING[kind] for kind in kinds if kind in ROUNDING), default=0.0)


def _require_equal(plain: Sequence[Any], alone: Sequence[Any], rounding: float, error: Error) -> None:
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
