"""Schedules: functions of the step count, for thresholds and temperatures that move during training.

A schedule maps a 0-d step tensor to a 0-d float64 tensor, on the host: reading it never waits for a device.
"""

import itertools
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Schedule = Callable[[Tensor], Tensor]


def constant(value: float) -> Schedule:
    """The same value at every step.

    Args:
        value: The value.

    Returns:
        The schedule.

    Examples:
        >>> import torch, harmony
        >>> harmony.schedule.constant(0.1)(torch.tensor(7))
        tensor(0.1000, dtype=torch.float64)
    """
    return lambda step: torch.full_like(step, value, dtype=torch.float64)


def linear(start: float, end: float, steps: int) -> Schedule:
    """From ``start`` to ``end`` in a straight line over ``steps`` steps, then ``end``.

    Args:
        start: Value at step 0.
        end: Value from step ``steps`` on.
        steps: Length of the way, at least 1.

    Returns:
        The schedule.

    Examples:
        >>> import torch, harmony
        >>> gamma = harmony.schedule.linear(-0.3, 0.0, steps=100)
        >>> [round(float(gamma(torch.tensor(t))), 2) for t in (0, 50, 100, 200)]
        [-0.3, -0.15, 0.0, 0.0]
    """
    progress = _progress(steps)
    return lambda step: torch.lerp(*_ends(step, start, end), progress(step))


def cosine(start: float, end: float, steps: int) -> Schedule:
    """From ``start`` to ``end`` along half a period of a cosine over ``steps`` steps, then ``end``.

    Args:
        start: Value at step 0.
        end: Value from step ``steps`` on.
        steps: Length of the way, at least 1.

    Returns:
        The schedule.

    Examples:
        >>> import torch, harmony
        >>> value = harmony.schedule.cosine(1.0, 0.0, steps=100)
        >>> [round(float(value(torch.tensor(t))), 3) for t in (0, 25, 50, 100)]
        [1.0, 0.854, 0.5, 0.0]
    """
    progress = _progress(steps)
    return lambda step: torch.lerp(*_ends(step, start, end), 0.5 - 0.5 * torch.cos(math.pi * progress(step)))


def quarter_cosine(start: float, end: float, steps: int) -> Schedule:
    """From ``start`` to ``end`` along a quarter of a period of a cosine over ``steps`` steps, then ``end``.

    Falls slowly at first and fastest at the end: the learning rate of VATT.

    Args:
        start: Value at step 0.
        end: Value from step ``steps`` on.
        steps: Length of the way, at least 1.

    Returns:
        The schedule.

    Examples:
        >>> import torch, harmony
        >>> rate = harmony.schedule.quarter_cosine(1e-4, 5e-5, steps=100)
        >>> [f"{float(rate(torch.tensor(t))):.2e}" for t in (0, 50, 100)]
        ['1.00e-04', '8.54e-05', '5.00e-05']

    References:
        Akbari et al., VATT, 2021 (arXiv:2104.11178), section 4.2.
    """
    progress = _progress(steps)
    return lambda step: torch.lerp(*_ends(step, start, end), 1 - torch.cos(0.5 * math.pi * progress(step)))


def polynomial(start: float, end: float, steps: int, power: float = 2.0) -> Schedule:
    """From ``start`` to ``end`` as a power of the share of the way, over ``steps`` steps, then ``end``.

    Args:
        start: Value at step 0.
        end: Value from step ``steps`` on.
        steps: Length of the way, at least 1.
        power: Positive; above 1 the change comes late, below 1 early.

    Returns:
        The schedule.

    Raises:
        ValueError: A way of no length, or a power that is not positive.

    Examples:
        >>> import torch, harmony
        >>> value = harmony.schedule.polynomial(0.0, 1.0, steps=100, power=2.0)
        >>> [round(float(value(torch.tensor(t))), 2) for t in (0, 50, 100)]
        [0.0, 0.25, 1.0]
    """
    if not power > 0:
        raise ValueError(f"power must be positive; got {power}.")
    progress = _progress(steps)
    return lambda step: torch.lerp(*_ends(step, start, end), progress(step) ** power)


def step(values: Mapping[int, float]) -> Schedule:
    """Values that hold from a step on until the next.

    Args:
        values: {step: value}, from step 0 on.

    Returns:
        The schedule.

    Raises:
        ValueError: No value at step 0, or a negative step.

    Examples:
        >>> import torch, harmony
        >>> gamma = harmony.schedule.step({0: -0.3, 100: 0.0})
        >>> [round(float(gamma(torch.tensor(t))), 2) for t in (0, 99, 100, 500)]
        [-0.3, -0.3, 0.0, 0.0]
    """
    points = _points(values)

    def value(step: Tensor) -> Tensor:
        found = torch.full_like(step, points[0][1], dtype=torch.float64)
        for start, y in points[1:]:
            found = torch.where(step >= start, y, found)
        return found

    return value


def piecewise(values: Mapping[int, float]) -> Schedule:
    """Straight lines from point to point, and the last value after them.

    Args:
        values: {step: value}, from step 0 on.

    Returns:
        The schedule.

    Raises:
        ValueError: No value at step 0, or a negative step.

    Examples:
        >>> import torch, harmony
        >>> share = harmony.schedule.piecewise({0: 1.0, 100: 1.0, 200: 0.5})
        >>> [round(float(share(torch.tensor(t))), 2) for t in (0, 100, 150, 500)]
        [1.0, 1.0, 0.75, 0.5]
    """
    points = _points(values)

    def value(step: Tensor) -> Tensor:
        found = torch.full_like(step, points[0][1], dtype=torch.float64)
        for (start, a), (end, b) in itertools.pairwise(points):
            line = torch.lerp(*_ends(step, a, b), ((step - start) / (end - start)).clamp(0, 1).double())
            found = torch.where(step >= start, line, found)
        return found

    return value


def warmup(schedule: Schedule, steps: int) -> Schedule:
    """Rise linearly from 0 to the first value of ``schedule`` over ``steps`` steps, then follow it from its start.

    Args:
        schedule: What comes after the warm-up.
        steps: Length of the warm-up; 0 for none.

    Returns:
        The schedule.

    Examples:
        >>> import torch, harmony
        >>> rate = harmony.schedule.warmup(harmony.schedule.constant(0.2), steps=10)
        >>> [round(float(rate(torch.tensor(t))), 2) for t in (0, 5, 10, 20)]
        [0.0, 0.1, 0.2, 0.2]
    """
    if steps < 0:
        raise ValueError(f"warm-up needs steps >= 0; got {steps}.")
    if steps == 0:
        return schedule
    return lambda step: schedule((step - steps).clamp(min=0)) * (step / steps).clamp(max=1)


def as_schedule(value: float | Schedule) -> Schedule:
    """A schedule as it is; a number as the constant schedule of that value.

    Args:
        value: A number or a schedule.

    Returns:
        The schedule.

    Examples:
        >>> import torch, harmony
        >>> harmony.schedule.as_schedule(0.1)(torch.tensor(7))
        tensor(0.1000, dtype=torch.float64)
    """
    return value if callable(value) else constant(value)


def _points(values: Mapping[int, float]) -> list[tuple[int, float]]:
    """The points of a schedule in order."""
    points = sorted(values.items())
    if not points or points[0][0] != 0:
        raise ValueError(f"the points of a schedule start at step 0; got {dict(values)}.")
    return points


def _progress(steps: int) -> Schedule:
    if steps < 1:
        raise ValueError(f"a schedule needs steps >= 1; got {steps}.")
    return lambda step: (step / steps).clamp(0, 1).double()


def _ends(step: Tensor, start: float, end: float) -> tuple[Tensor, Tensor]:
    return torch.full_like(step, start, dtype=torch.float64), torch.full_like(step, end, dtype=torch.float64)
