"""A safety net below the rules: a backward pass from a random half of the samples must leave the other half alone."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from harmony.engines.eager import eagerly
from harmony.engines.errors import LeakedGradientError
from harmony.engines.run import Cotangent
from harmony.engines.tape.graph import Graph, Output
from harmony.engines.tape.layout import Place
from harmony.engines.tape.plan import ParamBlock
from harmony.engines.tape.sample_block import spread

_GENERATOR = torch.Generator().manual_seed(0)


@eagerly()
def verify_rearrangements(
    graph: Graph, blocks: Sequence[ParamBlock], leaves: Sequence[Tensor], names: Sequence[str]
) -> None:
    """Raise a LeakedGradientError where a hook changes gradients between a rearranged parameter and itself."""
    for tensor in (tensor for block in blocks for tensor in block.tensors):
        if tensor.moves:
            (p,) = tensor.params
            leaf = leaves[p]
            sent = torch.rand(tensor.shape, generator=_GENERATOR, device="cpu").to(leaf.device, tensor.dtype)
            (expected,) = torch.autograd.grad(graph.edge(tensor.source), leaf, sent, retain_graph=True)
            (pulled,) = tensor.pull(graph, sent[None], leaves)
            if not torch.equal(pulled[0].to(leaf.dtype), expected):
                raise LeakedGradientError.at_hook(names[p])


class Half(NamedTuple):
    """A random half of the samples, and what a backward pass sends from them alone."""

    chosen: Tensor  # whether a sample is one of them (B,)
    cotangent: Cotangent


def random_half(leaves: Sequence[Tensor], cotangents: Sequence[Cotangent], size: int) -> Half:
    """The sum of the cotangents of several losses, for a random half of the samples."""
    half = torch.randperm(size, generator=_GENERATOR, device="cpu") < (size + 1) // 2
    sent: list[Tensor | None] = []
    for leaf, per_loss in zip(leaves, zip(*cotangents, strict=True), strict=True):
        present = [c for c in per_loss if c is not None]
        mask = half.to(leaf.device).view(-1, *[1] * (leaf.ndim - 1))
        sent.append(torch.where(mask, torch.stack(present).sum(0), 0) if present else None)
    return Half(half, sent)


def verify(
    graph: Graph,
    half: Half,
    grads: Mapping[Output, Tensor],
    places: Mapping[Output, Place],
    names: Mapping[Tensor, str],
) -> None:
    """Raise a LeakedGradientError where gradients of half of the samples have reached the places of the others."""
    leaks = []
    for output, grad in grads.items():
        other_half = spread((~half.chosen).to(grad.device), places[output], grad.ndim)
        # NaN comes from the model and says nothing of samples.
        leaks.append(((grad != 0) & ~grad.isnan() & other_half).any())
    if leaks and bool(torch.stack(leaks).any()):
        node = next(output for output, leak in zip(grads, leaks, strict=True) if leak)[0]
        raise LeakedGradientError.at_op(graph.names[node], graph.nearest_parameter(node, names))
