"""States of harmonizers in checkpoints."""

from typing import TypeVar

import torch

State = TypeVar("State", bound=type)


def loadable(cls: State) -> State:
    """Let ``torch.load`` read a class of states by its default, which admits no code (``weights_only=True``).

    Args:
        cls: A ``NamedTuple`` of tensors, numbers and other such classes.

    Returns:
        The same class.

    Examples:
        >>> import io, torch
        >>> from harmony.transform import StepState, first_step
        >>> file = io.BytesIO()
        >>> torch.save(first_step(), file)
        >>> torch.load(io.BytesIO(file.getvalue()))
        StepState(step=tensor(0))
    """
    torch.serialization.add_safe_globals([cls])
    return cls
