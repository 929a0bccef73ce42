"""Which tensors the autograd graph behind some outputs ends in, and what that tells of parameters that were used."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node
from torch.utils.weak import WeakIdKeyDictionary


class Paths(NamedTuple):
    """What lies behind some outputs.

    Attributes:
        leaves: Tensors that require a gradient and end the graph.
        ops: Names of all ops.
        functions: Names of the custom ``autograd.Function``s among them.
    """

    leaves: list[Tensor]
    ops: set[str]
    functions: list[str]


def paths(outputs: Iterable[Tensor]) -> Paths:
    """Follow the graph behind outputs."""
    result = Paths([], set(), [])
    stack: list[Node] = []
    for output in outputs:
        if output.grad_fn is not None:
            stack.append(output.grad_fn)
        elif output.requires_grad:
            result.leaves.append(output)
    seen = set(stack)
    while stack:
        node = stack.pop()
        collect(node, result)
        for source, _ in node.next_functions:
            if source is not None and source not in seen:
                seen.add(source)
                stack.append(source)
    return result


def collect(node: Node, result: Paths) -> None:
    """Note what one op is."""
    result.ops.add(node.name())
    leaf = getattr(node, "variable", None)
    if leaf is not None:
        result.leaves.append(leaf)
    if isinstance(node, BackwardCFunction):
        result.functions.append(node.name())


_FRESH = WeakIdKeyDictionary()


def fresh_leaf(p: Tensor) -> Tensor:
    """A parameter's value as a new leaf of the graph, known as ours."""
    leaf = p.detach().requires_grad_()
    _FRESH[leaf] = True
    return leaf


def require_paths(
    result: Paths,
    params: Sequence[Tensor],
    names: Sequence[str],
    hidden: set[Tensor],
    refuse: Callable[[Tensor], None] | None,
) -> None:
    """Raise a ValueError where parameters are used behind autograd's back.

    Args:
        result: What lies behind the embeddings.
        params: Parameters that autograd follows.
        names: Their names.
        hidden: Those of them that were used where no gradient was recorded.
        refuse: Raises what is to be said of an ``nn.Parameter`` that is none of them.
    """
    reached = set(map(id, result.leaves))
    own = set(map(id, params))
    for leaf in (leaf for leaf in result.leaves if id(leaf) not in own):
        if refuse is not None and isinstance(leaf, nn.Parameter):
            refuse(leaf)
        if leaf in _FRESH:
            raise ValueError(
                f"encode uses a tensor of shape {tuple(leaf.shape)} that it has kept from an earlier call: a module "
                "caches what is made of its parameters, so that their gradient is lost. Clear the cache before each "
                "call, or put the module in the mode (train or eval) in which it keeps none."
            )
    lost = [name for p, name in zip(params, names, strict=True) if p in hidden and id(p) not in reached]
    if lost and result.functions:
        raise ValueError(
            f"encode uses the parameter {lost[0]!r} inside of {' or '.join(sorted(set(result.functions)))}, and no "
            "path in the autograd graph leads to it: its gradient would be zero. Functions that run their module again "
            "in the backward pass (reversible layers, checkpoints with use_reentrant=True) cannot be differentiated "
            "for each sample. Use their plain form (use_reentrant=False), or freeze the parameter if no gradient is "
            "meant."
        )
