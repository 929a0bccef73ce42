"""A safety net below the rules: a backward pass from a random half of the samples must leave the other half alone."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from harmony.engines.eager import eagerly
from harmony.engines.errors import LeakedGradientError
from harmony.engines.forward import pull_back
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


@eagerly()
def verify(
    graph: Graph,
    leaves: Sequence[Tensor],
    cotangents: Sequence[Cotangent],
    places: Mapping[Output, Place],
    size: int,
    names: Mapping[Tensor, str],
) -> None:
    """Raise a LeakedGradientError where gradients of a random half of the samples reach the places of the others."""
    half = torch.randperm(size, generator=_GENERATOR, device="cpu") < (size + 1) // 2
    sent: list[Tensor | None] = []
    for leaf, per_loss in zip(leaves, zip(*cotangents, strict=True), strict=True):
        present = [c for c in per_loss if c is not None]
        mask = half.to(leaf.device).view(-1, *[1] * (leaf.ndim - 1))
        sent.append(torch.where(mask, torch.stack(present).sum(0), 0) if present else None)
    grads = pull_back(leaves, sent, [graph.edge(output) for output in places])
    reached = [(output, grad) for output, grad in zip(places, grads, strict=True) if grad is not None]
    leaks = []
    for output, grad in reached:
        other_half = spread((~half).to(grad.device), places[output], grad.ndim)
        # NaN comes from the model and says nothing of samples.
        leaks.append(((grad != 0) & ~grad.isnan() & other_half).any())
    if leaks and bool(torch.stack(leaks).any()):
        node = next(output for (output, _), leak in zip(reached, leaks, strict=True) if leak)[0]
        raise LeakedGradientError.at_op(graph.names[node], graph.nearest_parameter(node, names))
