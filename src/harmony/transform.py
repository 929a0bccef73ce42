"""Transforms of Gram blocks into weights, and their composition. The caller holds the state, a plain tree."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harmony.checkpoint import loadable
from harmony.cosines import check_blocks
from harmony.members import is_samplewise, refuse_factory

State = Any
Update = Callable[..., tuple[Any, State]]
"""``update(gram, state, **extras) -> (weights, state)``."""


class Transform(NamedTuple):
    """A pair of pure functions, after optax.

    Attributes:
        init: ``init() -> state``.
        update: ``update(gram, state, **extras) -> (weights, state)``. Extras of a step: loss terms ``terms`` (B, K),
            ``ids`` (B,), those that ``extras=`` adds, and with ``products_with`` inner products with a gradient (B, K)
            and its squared norm: ``batch_products`` and ``batch_square``, or ``reference_products`` and
            ``reference_square``. A transform ignores the extras that it does not need.
        samplewise: Whether the weights of a sample depend on its own block, its own extras and the state alone, and the
            next state on no sample. The step is then faster and smaller. Quantiles compare samples, and are not.
        layerwise: Whether ``update`` maps Gram blocks {label: (B, K, K)} to weights {label: (B, K)}, see
            [layerwise][harmony.layerwise]. Other transforms see the sum of these blocks.

    Examples:
        >>> total = harmony.Transform(lambda: (), lambda gram, state, **extras: (torch.ones(gram.shape[:2]), state))
        >>> total.update(torch.zeros(1, 2, 2), total.init())[0]
        tensor([[1., 1.]])
    """

    init: Callable[[], State]
    update: Update
    samplewise: bool = False
    layerwise: bool = False


Member = Transform | Callable[[Tensor], Tensor]


@loadable
class StepState(NamedTuple):
    """State of a transform that counts its updates.

    Attributes:
        step: Updates so far, a 0-d tensor on the host.
        memory: What the transform keeps from one update to the next.
    """

    step: Tensor
    memory: State = ()


def counting(
    update: Callable[..., tuple[Tensor, State]], memory: Callable[[], State] = tuple, *, samplewise: bool = False
) -> Transform:
    """A transform that counts its updates, of ``update(gram, step, memory, **extras) -> (weights, memory)``."""

    def init() -> StepState:
        return StepState(torch.zeros((), dtype=torch.int64, device="cpu"), memory())

    @torch.no_grad()
    def next_update(gram: Tensor, state: StepState, **extras: Any) -> tuple[Tensor, StepState]:
        weights, after = update(gram, state.step, state.memory, **extras)
        return weights, StepState(state.step + 1, after)

    return Transform(init, next_update, samplewise)


def chain(*members: Member) -> Transform:
    """Multiply the weights of several members, in order, from ones.

    Every member sees the raw Gram: ``chain(threshold(0.0), pcgrad)`` drops samples and projects the others, but
    ``chain(normalized, pcgrad)`` does not project normalised gradients.

    Args:
        *members: Transforms, and functions ``gram -> weights``; without members, the weights are ones.

    Returns:
        One transform; its state is the tuple of the members' states.

    Examples:
        >>> harmonizer = harmony.chain(harmony.curriculum.threshold(-0.6), harmony.realign.pcgrad)
        >>> gram = torch.tensor([[[1.0, -0.5], [-0.5, 1.0]], [[1.0, -0.9], [-0.9, 1.0]]])
        >>> weights, state = harmonizer.update(gram, harmonizer.init())
        >>> weights
        tensor([[1.5000, 1.5000],
                [0.0000, 0.0000]])
    """
    transforms = [as_transform(member) for member in members]

    def init() -> State:
        return tuple(t.init() for t in transforms)

    def update(gram: Any, state: State, **extras: Any) -> tuple[Any, State]:
        total = whole_gram(gram)
        check_blocks(total)
        if len(state) != len(transforms):
            raise ValueError(f"the state is of {len(state)} members, the chain has {len(transforms)}: use init().")
        weights: Any = torch.ones(total.shape[:2], dtype=total.dtype, device=total.device)
        states = []
        for member, transform, before in zip(members, transforms, state, strict=True):
            factor, after = apply(transform, gram, before, extras)
            _check_weights(factor, total, member)
            weights = product(weights, factor)
            states.append(after)
        return weights, tuple(states)

    return Transform(init, update, all(t.samplewise for t in transforms), any(t.layerwise for t in transforms))


def layerwise(member: Member) -> Transform:
    """Apply a member to the Gram blocks of each label of parameters apart: layer-wise or block-wise realignment.

    The labels come from ``labels=`` of [gram_vjp][harmony.gram_vjp]. Other members of a chain see the sum of blocks:
    ``chain(threshold(0.0), layerwise(pcgrad))`` drops whole samples, and projects the others layer by layer.

    Args:
        member: A transform, or a function ``gram -> weights``. Every label has its own state from its first update on.

    Returns:
        A transform from {label: Gram blocks (B, K, K)} to {label: weights (B, K)}.

    Examples:
        >>> method = harmony.layerwise(harmony.realign.pcgrad)
        >>> gram = {"first": torch.tensor([[[1.0, -0.5], [-0.5, 1.0]]]), "last": torch.eye(2)[None]}
        >>> method.update(gram, method.init())[0]
        {'first': tensor([[1.5000, 1.5000]]), 'last': tensor([[1., 1.]])}
    """
    transform = as_transform(member)
    if transform.layerwise:
        raise TypeError("layerwise was given a member that is layerwise already.")

    def update(gram: Any, state: State, **extras: Any) -> tuple[Any, State]:
        if not isinstance(gram, Mapping):
            raise TypeError("layerwise needs Gram blocks for each label: call the step with labels=.")
        weights, states = {}, {}
        for label, blocks in gram.items():
            rows = {name: x[label] if isinstance(x, Mapping) else x for name, x in extras.items()}
            before = state.get(label, transform.init())
            weights[label], states[label] = transform.update(blocks, before, **rows)
        return weights, states

    return Transform(dict, update, transform.samplewise, layerwise=True)


def as_transform(member: Member) -> Transform:
    """A transform as it is; a function ``gram -> weights`` as a transform without a state."""
    if isinstance(member, Transform):
        return member
    refuse_factory(member)
    if not callable(member):
        raise TypeError(f"a member of a chain is a Transform or a function gram -> weights; got {member!r}.")
    return Transform(lambda: (), lambda gram, state, **extras: (member(gram), state), is_samplewise(member))


def apply(transform: Transform, gram: Any, state: State, extras: Mapping[str, Any]) -> tuple[Any, State]:
    """Update a layerwise transform with every label, another one with the sum over the labels."""
    if not transform.layerwise:
        gram = whole_gram(gram)
        extras = {name: whole_gram(x) if isinstance(x, Mapping) else x for name, x in extras.items()}
    return transform.update(gram, state, **extras)


def whole_gram(gram: Tensor | Mapping[str, Tensor]) -> Tensor:
    """The Gram over all parameters that have a label: the sum of the labels' blocks."""
    return torch.stack(list(gram.values())).sum(0) if isinstance(gram, Mapping) else gram


def _check_weights(factor: Any, gram: Tensor, member: Member) -> None:
    for weights in factor.values() if isinstance(factor, Mapping) else [factor]:
        if not isinstance(weights, Tensor) or weights.shape != gram.shape[:2]:
            got = tuple(weights.shape) if isinstance(weights, Tensor) else repr(weights)
            raise TypeError(
                f"{getattr(member, '__name__', member)} gave {got} for weights of shape {tuple(gram.shape[:2])}. "
                "A factory of transforms must be called first: threshold(0.0), not threshold."
            )


def product(weights: Any, factor: Any) -> Any:
    """The product of weights; for each label where one of them has labels."""
    if isinstance(weights, Mapping):
        return {label: w * (factor[label] if isinstance(factor, Mapping) else factor) for label, w in weights.items()}
    return {label: weights * f for label, f in factor.items()} if isinstance(factor, Mapping) else weights * factor
