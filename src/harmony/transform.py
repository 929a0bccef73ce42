"""Transforms of Gram blocks into weights, and their composition. The state is a plain tree, held by the caller."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from harmony.checkpoint import loadable
from harmony.cosines import check_blocks

State = Any


@loadable
class StepState(NamedTuple):
    """State of what follows a schedule: the number of updates so far, a 0-d tensor on the host."""

    step: Tensor

    def next(self) -> "StepState":
        """One update later."""
        return StepState(self.step + 1)


def first_step() -> StepState:
    """The state before the first update.

    Examples:
        >>> first_step().next()
        StepState(step=tensor(1))
    """
    return StepState(torch.zeros((), dtype=torch.int64, device="cpu"))


class Update(Protocol):
    """``update(gram, state, **extras) -> (weights, state)``."""

    def __call__(self, gram: Any, state: State, **extras: Any) -> tuple[Any, State]:
        """Weights (B, K) of Gram blocks (B, K, K), and the next state; for each label where it is layerwise."""
        ...


class Transform(NamedTuple):
    """A pair of pure functions, after optax.

    Attributes:
        init: ``init() -> state``.
        update: ``update(gram, state, **extras) -> (weights, state)``. Extras that rules may use: ``terms`` (B, K), the
            loss terms, ``ids`` (B,), the samples' ids, ``batch_products`` (B, K), inner products with the batch's gradient, and
            what a step adds of its own; a transform ignores what it does not need.
        samplewise: Whether a sample's weights depend on its own block, its own extras and the state alone, and the
            next state on none of them. Then the gradient can be made part by part, which is faster and takes less
            memory. Rules that compare samples (quantiles, top-k) are not samplewise.
        layerwise: Whether ``update`` takes Gram blocks {label: (B, K, K)}, one for each label of parameters, and gives
            weights {label: (B, K)}: see [layerwise][harmony.layerwise]. Others see the sum of these blocks.

    Examples:
        >>> import torch, harmony
        >>> total = harmony.Transform(lambda: (), lambda gram, state, **extras: (torch.ones(gram.shape[:2]), state))
        >>> total.update(torch.zeros(1, 2, 2), total.init())[0]
        tensor([[1., 1.]])
    """

    init: Callable[[], State]
    update: Update
    samplewise: bool = False
    layerwise: bool = False


Member = Transform | Callable[[Tensor], Tensor]


def chain(*members: Member) -> Transform:
    """Multiply the weights of several members, in order, from ones.

    Every member sees the raw Gram, not what earlier members made of the gradients: ``chain(threshold, pcgrad)`` drops
    samples and projects the others, but a normalisation before ``pcgrad`` does not change what ``pcgrad`` projects.

    Args:
        *members: Transforms, and plain functions ``gram -> weights``; with none, the weights are ones.

    Returns:
        One transform; its state is the tuple of the members' states.

    Raises:
        TypeError: In ``update``, a member that gives no (B, K) tensor.

    Examples:
        >>> import torch, harmony
        >>> harmonizer = harmony.chain(harmony.curriculum.threshold(-0.6), harmony.realign.pcgrad)
        >>> gram = torch.tensor([[[1.0, -0.5], [-0.5, 1.0]], [[1.0, -0.9], [-0.9, 1.0]]])
        >>> weights, state = harmonizer.update(gram, harmonizer.init())
        >>> weights
        tensor([[1.5000, 1.5000],
                [0.0000, 0.0000]])
    """
    transforms = [m if isinstance(m, Transform) else _stateless(m) for m in members]

    def init() -> State:
        return tuple(t.init() for t in transforms)

    def update(gram: Any, state: State, **extras: Any) -> tuple[Any, State]:
        whole = whole_gram(gram)
        check_blocks(whole)
        if len(state) != len(transforms):
            raise ValueError(f"the state is of {len(state)} members, the chain has {len(transforms)}: use init().")
        weights: Any = torch.ones(whole.shape[:2], dtype=whole.dtype, device=whole.device)
        states = []
        for member, transform, s in zip(members, transforms, state, strict=True):
            factor, s = apply(transform, gram, s, extras)
            for f in factor.values() if isinstance(factor, Mapping) else [factor]:
                if not isinstance(f, Tensor) or f.shape != whole.shape[:2]:
                    got = tuple(f.shape) if isinstance(f, Tensor) else repr(f)
                    raise TypeError(
                        f"{getattr(member, '__name__', member)} gave {got} for weights of shape "
                        f"{tuple(whole.shape[:2])}. A factory of transforms must be called first: threshold(0.0), not "
                        "threshold."
                    )
            weights = _product(weights, factor)
            states.append(s)
        return weights, tuple(states)

    return Transform(init, update, all(t.samplewise for t in transforms), any(t.layerwise for t in transforms))


def layerwise(member: Member) -> Transform:
    """Apply a member to the Gram blocks of each label of parameters apart: layer-wise or block-wise realignment.

    The labels are those that ``wrt`` gives to [gram_vjp][harmony.gram_vjp]. Members of a chain that are not layerwise
    see the sum of the blocks: ``chain(threshold(0.0), layerwise(pcgrad))`` drops whole samples, and projects the
    gradients of the others layer by layer.

    Args:
        member: A transform, or a function ``gram -> weights``. Every label has a state of its own, from its first
            update on: a state with memory does not have the structure of ``init()``.

    Returns:
        A transform from {label: Gram blocks (B, K, K)} to {label: weights (B, K)}.

    Raises:
        TypeError: In ``update``, Gram blocks without labels.

    Examples:
        >>> import torch, harmony
        >>> encode = lambda p, x: (x * p["a"]) @ p["b"]
        >>> losses = lambda f: {"up": f[:, 0], "down": f[:, 1] - f[:, 0]}
        >>> params = {"a": torch.ones(2), "b": torch.tensor([[1.0, 3.0], [1.0, 0.0]])}
        >>> harmonizer = harmony.layerwise(harmony.realign.pcgrad)
        >>> step = harmony.harmonized_grad(encode, losses, harmonizer, labels=lambda name: name)
        >>> _, _, info = step(params, torch.ones(1, 2), harmonizer.init())
        >>> info.weights_of["a"], info.weights_of["b"]
        (tensor([[1., 1.]]), tensor([[2.0000, 1.5000]]))
    """
    transform = member if isinstance(member, Transform) else _stateless(member)
    if transform.layerwise:
        raise TypeError("layerwise was given a member that is layerwise already.")

    def update(gram: Any, state: State, **extras: Any) -> tuple[Any, State]:
        if not isinstance(gram, Mapping):
            raise TypeError("layerwise needs Gram blocks for each label: let wrt return labels, not yes or no.")
        found = {
            g: transform.update(blocks, state.get(g, transform.init()), **_of_label(extras, g))
            for g, blocks in gram.items()
        }
        return {g: weights for g, (weights, _) in found.items()}, {g: after for g, (_, after) in found.items()}

    return Transform(dict, update, transform.samplewise, layerwise=True)


def apply(transform: Transform, gram: Any, state: State, extras: Mapping[str, Any]) -> tuple[Any, State]:
    """Update with what a transform looks at: every label, or the whole, which is the sum over the labels."""
    if not transform.layerwise:
        gram = whole_gram(gram)
        extras = {name: whole_gram(x) if isinstance(x, Mapping) else x for name, x in extras.items()}
    return transform.update(gram, state, **extras)


def _of_label(extras: Mapping[str, Any], label: str) -> dict[str, Any]:
    return {name: x[label] if isinstance(x, Mapping) else x for name, x in extras.items()}


def whole_gram(gram: Tensor | Mapping[str, Tensor]) -> Tensor:
    """The Gram over all parameters that have a label: the sum of the labels' blocks."""
    return torch.stack(list(gram.values())).sum(0) if isinstance(gram, Mapping) else gram


def _product(weights: Any, factor: Any) -> Any:
    """The product of weights, for each label where one of them has labels."""
    if isinstance(weights, Mapping):
        return {g: w * (factor[g] if isinstance(factor, Mapping) else factor) for g, w in weights.items()}
    return {g: weights * f for g, f in factor.items()} if isinstance(factor, Mapping) else weights * factor


Function = TypeVar("Function", bound=Callable[..., Tensor])


def samplewise(function: Function) -> Function:
    """Mark a function ``gram -> weights`` as one that looks at each sample's block alone.

    Args:
        function: Stateless, (B, K, K) -> (B, K). With further arguments, fix them by ``functools.partial``.

    Returns:
        The same function. Those of ``harmony.realign`` are marked.

    Examples:
        >>> import torch, harmony
        >>> @harmony.samplewise
        ... def unit(gram):
        ...     return gram.diagonal(dim1=1, dim2=2).rsqrt()
        >>> harmony.chain(unit).samplewise
        True
    """
    function.samplewise = True  # type: ignore[attr-defined]
    return function


def _stateless(function: Callable[[Tensor], Tensor]) -> Transform:
    if not callable(function):
        raise TypeError(f"a member of a chain is a Transform or a function gram -> weights; got {function!r}.")
    return Transform(lambda: (), lambda gram, state, **extras: (function(gram), state), is_samplewise(function))


def is_samplewise(function: Callable[..., Tensor]) -> bool:
    """Whether a function, or what a ``partial`` of it calls, was marked by ``samplewise``."""
    inner = function.func if isinstance(function, partial) else function
    return bool(getattr(inner, "samplewise", False))
