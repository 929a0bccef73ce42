"""A safety net below the rules: a backward pass from a random half of the samples must leave the other half alone."""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from harmony.engines.eager import eagerly
from harmony.engines.encoded import Cotangent
from harmony.engines.precision import full_precision
from harmony.engines.tape.errors import LeakedGradientError
from harmony.engines.tape.graph import Graph, Output, parameter_behind
from harmony.engines.tape.layout import Place, along
from harmony.engines.tape.param_tensor import ParamTensor

Verify = Literal["auto", "always", "never"]

_CALLS: Counter[Any] = Counter()
_REMEMBERED = 4096
_LOCK = threading.Lock()
_GENERATOR = torch.Generator().manual_seed(0)


def due(signature: Any, verify: Verify) -> bool:
    """Whether to verify now: with ``"auto"`` at the calls 1, 2, 4, 8, ... with the same graph."""
    if verify != "auto":
        return verify == "always"
    key = hash(signature)
    with _LOCK:
        if len(_CALLS) > _REMEMBERED:
            _CALLS.clear()
        _CALLS[key] += 1
        calls = _CALLS[key]
    return calls & (calls - 1) == 0


@eagerly()
def verify_rearrangements(targets: Sequence[ParamTensor], leaves: Sequence[Tensor], names: Sequence[str]) -> None:
    """Raise a LeakedGradientError where the way from a rearranged parameter back to it is not what it seems: a hook."""
    for target in targets:
        if target.moves:
            (p,) = target.params
            leaf = leaves[p]
            sent = torch.rand(target.shape, generator=_GENERATOR, device="cpu").to(leaf.device, target.dtype)
            (expected,) = torch.autograd.grad(target.edge, leaf, sent, retain_graph=True)
            (got,) = target.pull(sent[None], leaves)
            if not torch.equal(got[0].to(leaf.dtype), expected):
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
    """Raise a LeakedGradientError where gradients of a random half of the samples reach the places of the others.

    Args:
        graph: The recorded graph.
        leaves: The tracked embedding leaves.
        cotangents: K cotangents at the leaves.
        places: Where the samples lie in the outputs whose gradients are used.
        size: B.
        names: Names of the parameters.
    """
    half = torch.randperm(size, generator=_GENERATOR, device="cpu") < (size + 1) // 2
    sent = []
    for leaf, of_leaf in zip(leaves, zip(*cotangents, strict=True), strict=True):
        present = [c for c in of_leaf if c is not None]
        if present:
            mask = half.to(leaf.device).view(-1, *[1] * (leaf.ndim - 1))
            sent.append((leaf, torch.where(mask, torch.stack(present).sum(0), 0).to(leaf.dtype)))
    outputs = list(places)
    if not sent or not outputs:
        return
    with full_precision(leaves[0].device.type):
        grads = torch.autograd.grad(
            [leaf for leaf, _ in sent],
            [graph.edge(o) for o in outputs],
            [c for _, c in sent],
            retain_graph=True,
            allow_unused=True,
        )
    leaks = []
    for output, grad in zip(outputs, grads, strict=True):
        if grad is not None:
            others = along((~half).to(grad.device), places[output], grad.ndim)
            # Not a number is the model's own affair: it says nothing of samples.
            leaks.append(((grad != 0) & ~grad.isnan() & others).any())
    if leaks and bool(torch.stack(leaks).any()):
        reached = [o for o, g in zip(outputs, grads, strict=True) if g is not None]
        node = next(o for o, leak in zip(reached, leaks, strict=True) if leak)[0]
        raise LeakedGradientError.at_op(graph.names[node], parameter_behind(graph, node, names))
