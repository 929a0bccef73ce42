"""Find out by experiment whose gradients reach which entries: exact for the batch at hand, whatever the ops are.

The samples are told apart by the bits of their numbers. For each bit, gradients are sent from the samples that have it,
then from those that have it not. The entries that are reached both times are those of several samples.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

from harmony.engines.tape.axis_rules import Mark, State
from harmony.engines.tape.axis_rules.places import SEVERAL, place_of_entries
from harmony.engines.tape.graph import Graph, Output, dtypes
from harmony.engines.tape.layout import NOBODY, Place, RowMap, along

Send = Callable[[Tensor], Sequence[Tensor | None]]
"""Factors of the samples (B,) -> gradients of some tensors, those of sample b multiplied by its factor."""


def states(send: Send, size: int) -> list[State | None]:
    """Where the samples lie in each tensor that ``send`` gives a gradient of; None where it gives none."""
    numbers = torch.arange(size, device="cpu")
    passes = [
        [[_reached(grad) for grad in send((numbers >> bit) % 2 == value)] for value in (1, 0)]
        for bit in range((size - 1).bit_length())
    ]
    found: list[State | None] = []
    for of_tensor in zip(*(zip(*bit, strict=True) for bit in passes), strict=True):
        reached = [(ones, zeros) for ones, zeros in of_tensor if ones is not None and zeros is not None]
        found.append(_state(reached, size) if len(reached) == len(passes) else None)
    return found


def _reached(grad: Tensor | None) -> tuple[Tensor, bool] | None:
    """The entries that a gradient reaches, on the host, and whether all of them can be told."""
    if grad is None:
        return None
    grad = grad.to_dense() if grad.is_sparse else grad
    nan = grad.isnan()
    return ((grad != 0) & ~nan).cpu(), not bool(nan.any())


def _state(reached: Sequence[tuple[Any, Any]], size: int) -> State | None:
    """The state of a tensor, from the entries reached from the samples with each bit, and without it."""
    entries = torch.zeros(reached[0][0][0].shape, dtype=torch.int64, device="cpu")
    anybody, several = torch.zeros_like(entries, dtype=torch.bool), torch.zeros_like(entries, dtype=torch.bool)
    for bit, ((ones, _), (zeros, _)) in enumerate(reached):
        entries += ones.long() << bit
        anybody |= ones | zeros
        several |= ones & zeros
    state = place_of_entries(entries.masked_fill(~anybody, NOBODY).masked_fill(several, SEVERAL), size)
    certain = all(known for pair in reached for _, known in pair)
    return state if certain or not isinstance(state, RowMap) else Mark.UNKNOWN


def through_op(graph: Graph, node: int, places: Mapping[int, Place], size: int) -> list[State | None]:
    """What one op tells of its inputs, by its own backward; ``places`` are those of its outputs."""
    op = graph.nodes[node]
    kinds = dtypes(op)
    sent = {n: noise(graph.shape((node, n)), kinds[n], op._input_metadata[n].device, seed=n) for n in places}

    def send(chosen: Tensor) -> list[Tensor | None]:
        grads: list[Tensor | None] = [None] * len(graph.shapes[node])
        for number, place in places.items():
            grad = sent[number]
            grads[number] = grad * along(chosen.to(grad.device, grad.dtype), place, grad.ndim)
        return _backward(op, grads, graph.inputs[node], graph.shapes[node])

    return states(send, size)


def noise(shape: torch.Size, dtype: torch.dtype, device: torch.device, seed: int) -> Tensor:
    """Gradients of which no sum vanishes by accident."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(shape, generator=generator, device="cpu") + 0.5
    signs = torch.randint(2, shape, generator=generator, device="cpu") * 2 - 1
    return (sizes * signs).to(device=device, dtype=dtype)


def _backward(
    op: Node, grads: list[Tensor | None], inputs: Sequence[Output | None], shapes: Sequence[torch.Size]
) -> list[Tensor | None]:
    """Call the backward of one op: a gradient for each of its differentiable inputs."""
    custom: Any = op if isinstance(op, BackwardCFunction) else None
    template = next(g for g in grads if g is not None)
    with torch.no_grad():
        if custom is not None:
            filled = [template.new_zeros(s) if g is None else g for g, s in zip(grads, shapes, strict=True)]
            results: Any = custom.apply(*filled)
        else:
            results = op(*grads)  # type: ignore[operator]
    results = results if isinstance(results, tuple) else (results,)
    if custom is not None:  # a gradient for each argument, tensor or not
        wanted = iter([r for r, needed in zip(results, custom.needs_input_grad, strict=False) if needed])
        results = tuple(None if source is None else next(wanted) for source in inputs)
    return [r if isinstance(r, Tensor) else None for r in results]
