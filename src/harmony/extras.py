"""Extras: what a rule needs beside the Gram, such as loss terms and ids."""

from collections.abc import Sequence

import torch
from torch import Tensor


def require_extra(rule: str, name: str, value: Tensor | None, shape: Sequence[int], source: str) -> Tensor:
    """The extra ``name`` that ``rule`` needs, of the right shape, or an error that says how to get it from ``source``.

    Examples:
        >>> require_extra("ema", "ids", torch.tensor([4, 7]), (2,), "ids=")
        tensor([4, 7])
    """
    if value is None:
        raise ValueError(f"{rule} needs {name} {tuple(shape)}: call the step with {source}.")
    if value.shape != torch.Size(shape):
        raise ValueError(
            f"{rule} needs {name} of shape {tuple(shape)}, one for each Gram block; got {tuple(value.shape)}. "
            "Extras of single samples need group_size=1."
        )
    return value
