"""Arguments that users give: numbers in their range, and the extras that a rule needs beside the Gram."""

import operator
from collections.abc import Sequence
from typing import Any

from torch import Tensor

BOUNDS = {"at least": operator.ge, "above": operator.gt, "at most": operator.le, "below": operator.lt}


def check_range(name: str, value: Any, **limits: float) -> None:
    """Refuse a number beyond its limits ``at_least``, ``above``, ``at_most``, ``below``; schedules pass."""
    bounds = {bound.replace("_", " "): limit for bound, limit in limits.items()}
    if isinstance(value, int | float) and not all(BOUNDS[bound](value, limit) for bound, limit in bounds.items()):
        expected = " and ".join(f"{bound} {limit}" for bound, limit in bounds.items())
        raise ValueError(f"{name} must be {expected}; got {value}.")


def require_extra(rule: str, name: str, value: Tensor | None, shape: Sequence[int | str], source: str) -> Tensor:
    """The extra ``name`` that ``rule`` needs, in ``shape``: letters stand for any size. ``source`` gives it."""
    if value is None:
        raise ValueError(f"{rule} needs {name} {_shown(shape)}: call the step with {source}.")
    sizes = [n if isinstance(s, str) else s for s, n in zip(shape, value.shape, strict=False)]
    if value.ndim != len(shape) or sizes != list(value.shape):
        raise ValueError(
            f"{rule} needs {name} of shape {_shown(shape)}, one for each Gram block; got {tuple(value.shape)}. "
            "Extras of single samples need group_size=1."
        )
    return value


def _shown(shape: Sequence[int | str]) -> str:
    """Called where there is an error alone: torch.compile cannot trace it."""
    return str(tuple(shape)).replace("'", "")
