"""Find out by experiment whose gradients reach which entries: exact for the batch at hand, whatever the ops are.

The samples are told apart by the bits of their numbers. For each bit, gradients are sent from the samples that have it,
then from those that do not. The entries that are reached both times belong to several samples.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from harmony.engines.tape import autograd_fields as fields
from harmony.engines.tape.graph import Graph
from harmony.engines.tape.layout import NOBODY, SEVERAL, Mark, Place, RowMap, State, state_of_entries
from harmony.engines.tape.sample_block import spread

Send = Callable[[Tensor], Sequence[Tensor | None]]
"""Factors of the samples (B,) -> gradients of some tensors, those of sample b multiplied by its factor."""


def states(send: Send, size: int) -> list[State | None]:
    """Where the samples lie in each tensor that ``send`` gives a gradient of; None where it gives none."""
    numbers = torch.arange(size, device="cpu")
    passes = [
        [_reached(grad) for grad in send((numbers >> bit) % 2 == value)]
        for bit in range((size - 1).bit_length())
        for value in (1, 0)
    ]
    return [_state(reached, size) for reached in zip(*passes, strict=True)]


def _reached(grad: Tensor | None) -> tuple[Tensor, bool] | None:
    """The entries that a gradient reaches, on the host, and whether all of them can be told."""
    if grad is None:
        return None
    grad = grad.to_dense() if grad.is_sparse else grad
    nan = grad.isnan()
    return ((grad != 0) & ~nan).cpu(), not bool(nan.any())


def _state(passes: Sequence[tuple[Tensor, bool] | None], size: int) -> State | None:
    """The state of a tensor, from the entries reached from the samples with each bit, and without it."""
    reached = [entries for entries in passes if entries is not None]
    if len(reached) < len(passes):
        return None
    samples = torch.zeros(reached[0][0].shape, dtype=torch.int64, device="cpu")
    anybody, several = torch.zeros_like(samples, dtype=torch.bool), torch.zeros_like(samples, dtype=torch.bool)
    for bit, ((ones, _), (zeros, _)) in enumerate(zip(reached[::2], reached[1::2], strict=True)):
        samples += ones.long() << bit
        anybody |= ones | zeros
        several |= ones & zeros
    state = state_of_entries(samples.masked_fill(~anybody, NOBODY).masked_fill(several, SEVERAL), size)
    certain = all(known for _, known in reached)
    return state if certain or not isinstance(state, RowMap) else Mark.UNKNOWN


def through_op(graph: Graph, node: int, places: Mapping[int, Place], size: int) -> list[State | None]:
    """What one op tells of its inputs, by its own backward; ``places`` are those of its outputs."""
    op, kinds = graph.nodes[node], graph.dtypes[node]
    sent = {n: noise(graph.shape((node, n)), kinds[n], fields.device(op, n), seed=n) for n in places}

    def send(chosen: Tensor) -> list[Tensor | None]:
        grads: list[Tensor | None] = [None] * len(kinds)
        for number, place in places.items():
            grad = sent[number]
            grads[number] = grad * spread(chosen.to(grad.device, grad.dtype), place, grad.ndim)
        return fields.run_backward(op, grads)

    return states(send, size)


def noise(shape: torch.Size, dtype: torch.dtype, device: torch.device, seed: int) -> Tensor:
    """Gradients of which no sum vanishes by accident."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(shape, generator=generator, device="cpu") + 0.5
    signs = torch.randint(2, shape, generator=generator, device="cpu") * 2 - 1
    return (sizes * signs).to(device=device, dtype=dtype)
