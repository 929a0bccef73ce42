"""The reference engine: per-sample gradients by ``torch.func``, in chunks of samples.

It is exact for every function that ``vmap`` can batch, and loops over samples, with a warning, for the others
(recurrent layers, data-dependent control flow). It materialises the gradients of one chunk at a time.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from harmony.engines.encoded import Cotangent, Encoded
from harmony.engines.random import replay, restore, snapshot
from harmony.engines.trace import Inputs, Trace, join, trace_batch, trace_loop, trace_vmap


def encode_batch(inputs: Inputs, *, per_sample: bool, group_size: int, chunk_size: int | None, loop: bool) -> Encoded:
    """Encode a batch, chunk by chunk, ready to pull cotangents back.

    Args:
        inputs: The flattened call; ``inputs.selected`` marks the parameters the Gram is taken over.
        per_sample: Whether gradients of single samples will be asked for (``gram``). Without, the encoder runs on
            whole chunks with ordinary autograd, which is all that ``pull`` and ``gram_of_rows`` need.
        group_size: Samples whose gradients are summed before the Gram.
        chunk_size: Samples encoded at once; embeddings first, each chunk encoded again when it is differentiated.
            None keeps the whole batch and its graph.
        loop: Use a Python loop over samples instead of ``vmap``.
    """
    blocks = list(whole_groups(inputs.size, group_size, chunk_size))
    chunks = [chunk for block in blocks for chunk in block]
    keep_graph = len(chunks) == 1

    run: Callable[[Inputs], Trace] = trace_batch if not per_sample else trace_loop if loop else trace_vmap
    parts, states = [], []
    for chunk in chunks:
        states.append(snapshot(inputs.params))
        trace, run = _trace_or_loop(run, inputs.narrow(chunk))
        parts.append(trace.leaves)
        spec, tracked, kept = trace.spec, trace.tracked, trace if keep_graph else None
        del trace  # the graph of one chunk at a time

    def traced(chunk: slice) -> Trace:
        """The run of one chunk: the graph that was kept, or the same run again with the same random numbers."""
        if kept is not None:
            return kept
        with replay(states[chunks.index(chunk)]):
            return run(inputs.narrow(chunk))

    def pull_selected(trace: Trace, cotangent: Cotangent) -> list[Tensor]:
        return [g for g, s in zip(trace.pull(cotangent), inputs.selected, strict=True) if s]

    def gram(cotangents: Sequence[Cotangent]) -> Tensor:
        grams = []
        for block in blocks:
            total: list[list[Tensor]] = []  # K lists of leaves (groups, *shape)
            for chunk in block:
                trace = traced(chunk)
                grads = [pull_selected(trace, narrow(c, chunk)) for c in cotangents]
                del trace
                total = _add(total, [[sum_groups(g, group_size) for g in leaves] for leaves in grads])
            grams.append(inner_products(total))
        return torch.cat(grams)

    def gram_of_rows(rows: Callable[[range], Sequence[Cotangent]]) -> Tensor:
        groups, step = -(-inputs.size // group_size), chunk_size or 1
        grams = []
        for block in (range(start, min(start + step, groups)) for start in range(0, groups, step)):
            cotangents = rows(block)  # leaves (len(block), B, ...)
            total: list[list[Tensor]] = []
            for chunk in chunks:
                trace = traced(chunk)
                pulled = [
                    [pull_selected(trace, narrow(_row(c, r), chunk)) for r in range(len(block))] for c in cotangents
                ]
                del trace
                total = _add(total, [[torch.stack(leaf) for leaf in zip(*k, strict=True)] for k in pulled])
            grams.append(inner_products(total))
        return torch.cat(grams)

    def pull(cotangent: Cotangent) -> Any:
        total: list[list[Tensor]] = []
        for chunk in chunks:
            grads = traced(chunk).pull(narrow(cotangent, chunk))
            if per_sample:
                grads = [g.sum(0) if s else g for g, s in zip(grads, inputs.selected, strict=True)]
            total = _add(total, [grads])
        return pytree.tree_unflatten(total[0], inputs.params_spec)

    return Encoded(join(parts), spec, tracked, gram, gram_of_rows, pull)


def whole_groups(size: int, group_size: int, chunk_size: int | None) -> Iterator[list[slice]]:
    """Cut the batch into blocks of whole groups, and each block into chunks of at most ``chunk_size`` samples.

    A block has several chunks only where one group is larger than a chunk.
    """
    chunk = min(chunk_size or size, size)
    block = max(chunk // group_size, 1) * group_size
    for start in range(0, size, block):
        stop = min(start + block, size)
        yield [slice(s, min(s + chunk, stop)) for s in range(start, stop, chunk)]


def sum_groups(grads: Tensor, group_size: int) -> Tensor:
    """Sum the gradients (n, *shape) of consecutive samples: (groups, *shape)."""
    if group_size == 1:
        return grads
    return torch.stack([part.sum(0) for part in torch.split(grads, group_size)])


def inner_products(grads: Sequence[Sequence[Tensor]]) -> Tensor:
    """Gram blocks (groups, K, K) of K lists of gradients with leaves (groups, *shape), in at least float32."""
    total: Tensor | None = None
    with full_precision(grads[0][0].device.type):
        for leaves in zip(*grads, strict=True):
            rows = torch.stack([accumulating(leaf).flatten(1) for leaf in leaves], dim=1)  # (groups, K, p)
            product = rows @ rows.mT
            total = product if total is None else total + product
    assert total is not None
    return total


def full_precision(device: str) -> contextlib.AbstractContextManager[Any]:
    """Inside, autocast does not lower the precision of matrix products."""
    return (
        torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else contextlib.nullcontext()
    )


def accumulating(x: Tensor) -> Tensor:
    """Half precision is too coarse for sums of squares: raise it to float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def narrow(cotangent: Cotangent, chunk: slice) -> Cotangent:
    """The cotangents of a chunk of samples."""
    return [None if c is None else c[chunk] for c in cotangent]


def _row(cotangent: Cotangent, row: int) -> Cotangent:
    return [None if c is None else c[row] for c in cotangent]


def _add(total: list[list[Tensor]], more: list[list[Tensor]]) -> list[list[Tensor]]:
    if not total:
        return more
    return [[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(total, more, strict=True)]


def _trace_or_loop(run: Callable[[Inputs], Trace], inputs: Inputs) -> tuple[Trace, Callable[[Inputs], Trace]]:
    """Run the encoder; where ``vmap`` cannot, loop over samples from then on."""
    state = snapshot(inputs.params)
    try:
        return run(inputs), run
    except RuntimeError as error:
        if run is not trace_vmap or isinstance(error, torch.OutOfMemoryError):
            raise
        restore(state)
        trace = trace_loop(inputs)  # an encoder that is broken by itself raises its own error here
        warnings.warn(
            f"torch.func.vmap cannot batch this encoder ({str(error).splitlines()[0]}): its per-sample gradients are "
            'computed in a Python loop over samples, which is exact and slow. Pass method="loop" to silence this.',
            stacklevel=4,
        )
        return trace, trace_loop
