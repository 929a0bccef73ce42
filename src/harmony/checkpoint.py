"""States of harmonizers in checkpoints."""

from typing import TypeVar

import torch

State = TypeVar("State", bound=type)


def loadable(cls: State) -> State:
    """Let ``torch.load`` read a ``NamedTuple`` of tensors by its default, ``weights_only=True``, which admits no code.

    Examples:
        >>> import io, torch
        >>> from harmony.transform import StepState
        >>> file = io.BytesIO()
        >>> torch.save(StepState(torch.tensor(0)), file)
        >>> torch.load(io.BytesIO(file.getvalue()))
        StepState(step=tensor(0), memory=())
    """
    torch.serialization.add_safe_globals([cls])
    return cls
