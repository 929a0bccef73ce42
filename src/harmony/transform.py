"""Transforms of Gram blocks into weights, and their composition. The state is a plain tree, held by the caller."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from harmony.cosines import check_blocks

State = Any


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
    return StepState(torch.zeros((), dtype=torch.int64))


class Update(Protocol):
    """``update(gram, state, **extras) -> (weights, state)``."""

    def __call__(self, gram: Tensor, state: State, **extras: Any) -> tuple[Tensor, State]:
        """Weights (B, K) of Gram blocks (B, K, K), and the next state."""
        ...


class Transform(NamedTuple):
    """A pair of pure functions, after optax.

    Attributes:
        init: ``init() -> state``.
        update: ``update(gram, state, **extras) -> (weights, state)``. Extras that rules may use: ``terms`` (B, K), the
            loss terms, and ``ids`` (B,), the samples' ids; a transform ignores what it does not need.
        samplewise: Whether a sample's weights depend on its own block, its own extras and the state alone, and the
            next state on none of them. Then the gradient can be made part by part, which is faster and takes less
            memory. Rules that compare samples (quantiles, top-k) are not samplewise.

    Examples:
        >>> import torch, harmony
        >>> total = harmony.Transform(lambda: (), lambda gram, state, **extras: (torch.ones(gram.shape[:2]), state))
        >>> total.update(torch.zeros(1, 2, 2), total.init())[0]
        tensor([[1., 1.]])
    """

    init: Callable[[], State]
    update: Update
    samplewise: bool = False


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

    def update(gram: Tensor, state: State, **extras: Any) -> tuple[Tensor, State]:
        check_blocks(gram)
        if len(state) != len(transforms):
            raise ValueError(f"the state is of {len(state)} members, the chain has {len(transforms)}: use init().")
        weights = torch.ones(gram.shape[:2], dtype=gram.dtype, device=gram.device)
        states = []
        for member, transform, s in zip(members, transforms, state, strict=True):
            factor, s = transform.update(gram, s, **extras)
            if not isinstance(factor, Tensor) or factor.shape != weights.shape:
                got = tuple(factor.shape) if isinstance(factor, Tensor) else repr(factor)
                raise TypeError(
                    f"{getattr(member, '__name__', member)} gave {got} for weights of shape {tuple(weights.shape)}. "
                    "A factory of transforms must be called first: threshold(0.0), not threshold."
                )
            weights = weights * factor
            states.append(s)
        return weights, tuple(states)

    return Transform(init, update, all(t.samplewise for t in transforms))


Function = TypeVar("Function", bound=Callable[..., Tensor])


def samplewise(function: Function) -> Function:
    """Mark a function ``gram -> weights`` as one that looks at each sample's block alone.

    Args:
        function: Stateless, (B, K, K) -> (B, K). With further arguments, fix them by ``functools.partial``.

    Returns:
        The same function. All of ``harmony.realign`` is marked.

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
    inner = function.func if isinstance(function, partial) else function
    marked = bool(getattr(inner, "samplewise", False))
    return Transform(lambda: (), lambda gram, state, **extras: (function(gram), state), marked)
