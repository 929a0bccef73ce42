"""States of harmonizers in checkpoints."""

from typing import TypeVar

import torch

State = TypeVar("State", bound=type)


def loadable(cls: State) -> State:
    """Let ``torch.load`` read a ``NamedTuple`` of tensors by its default, which admits no code."""
    torch.serialization.add_safe_globals([cls])
    return cls
