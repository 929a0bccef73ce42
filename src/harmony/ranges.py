"""Numbers that users give, and the ranges they must lie in."""

import operator
from typing import Any

BOUNDS = {"at least": operator.ge, "above": operator.gt, "at most": operator.le, "below": operator.lt}


def check_range(name: str, value: Any, **limits: float) -> None:
    """Raise a ValueError unless a number keeps its limits: ``at_least``, ``above``, ``at_most``, ``below``.

    Schedules pass: their values are known in training only.

    Examples:
        >>> check_range("decay", 1.0, at_least=0, below=1)
        Traceback (most recent call last):
        ValueError: decay must be at least 0 and below 1; got 1.0.
    """
    bounds = {bound.replace("_", " "): limit for bound, limit in limits.items()}
    if isinstance(value, int | float) and not all(BOUNDS[bound](value, limit) for bound, limit in bounds.items()):
        expected = " and ".join(f"{bound} {limit}" for bound, limit in bounds.items())
        raise ValueError(f"{name} must be {expected}; got {value}.")
