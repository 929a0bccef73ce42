"""Extras: what a rule needs beside the Gram, such as loss terms and ids."""

from collections.abc import Sequence

from torch import Tensor


def require_extra(rule: str, name: str, value: Tensor | None, shape: Sequence[int | str], source: str) -> Tensor:
    """The extra ``name`` that ``rule`` needs, or an error that says how to get it from ``source``.

    Letters in ``shape`` stand for axes of any size.

    Examples:
        >>> import torch
        >>> require_extra("ema", "ids", torch.tensor([4, 7]), (2,), "ids=")
        tensor([4, 7])
    """
    expected = str(tuple(shape)).replace("'", "")
    if value is None:
        raise ValueError(f"{rule} needs {name} {expected}: call the step with {source}.")
    sizes = [n if isinstance(s, str) else s for s, n in zip(shape, value.shape, strict=False)]
    if value.ndim != len(shape) or sizes != list(value.shape):
        raise ValueError(
            f"{rule} needs {name} of shape {expected}, one for each Gram block; got {tuple(value.shape)}. "
            "Extras of single samples need group_size=1."
        )
    return value
