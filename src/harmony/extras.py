"""What rules need beside the Gram: loss terms, ids, and what a step adds of its own."""

from collections.abc import Sequence

import torch
from torch import Tensor


def needed(rule: str, name: str, value: Tensor | None, shape: Sequence[int], source: str) -> Tensor:
    """An extra, of the shape it must have.

    Args:
        rule: Who needs it.
        name: What it is called.
        value: What came.
        shape: The shape it must have, one row for each Gram block.
        source: How to ask for it.

    Returns:
        The value.

    Raises:
        ValueError: It is missing, or of another shape.

    Examples:
        >>> needed("ema", "ids", torch.tensor([4, 7]), (2,), "ids=")
        tensor([4, 7])
    """
    if value is None:
        raise ValueError(f"{rule} needs {name} {tuple(shape)}: call the step with {source}.")
    if value.shape != torch.Size(shape):
        raise ValueError(
            f"{rule} needs {name} of shape {tuple(shape)}, one for each Gram block; got {tuple(value.shape)}. What "
            "belongs to single samples needs group_size=1."
        )
    return value
