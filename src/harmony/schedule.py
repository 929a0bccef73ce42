"""Schedules: functions of the step count, for thresholds and temperatures that move during training.

A schedule maps a 0-d step tensor to a 0-d float64 tensor, on the host: reading it never waits for a device.
"""

import itertools
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from harmony.members import factory, refuse_factory
from harmony.ranges import check_range

Schedule = Callable[[Tensor], Tensor]


@factory("schedule")
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


@factory("schedule")
def linear(start: float, end: float, steps: int) -> Schedule:
    """From ``start`` to ``end`` in a straight line, then ``end``.

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
    return _curve(start, end, steps, lambda share: share)


@factory("schedule")
def cosine(start: float, end: float, steps: int) -> Schedule:
    """From ``start`` to ``end`` along half a period of a cosine, then ``end``.

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
    return _curve(start, end, steps, lambda share: 0.5 - 0.5 * torch.cos(math.pi * share))


@factory("schedule")
def quarter_cosine(start: float, end: float, steps: int) -> Schedule:
    """From ``start`` to ``end`` along a quarter of a period of a cosine, then ``end``: slow at first, fast at the end.

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
        The learning rate of VATT: Akbari et al., 2021 (arXiv:2104.11178), section 4.2.
    """
    return _curve(start, end, steps, lambda share: 1 - torch.cos(0.5 * math.pi * share))


@factory("schedule")
def polynomial(start: float, end: float, steps: int, power: float = 2.0) -> Schedule:
    """From ``start`` to ``end`` as a power of the share of the way, then ``end``.

    Args:
        start: Value at step 0.
        end: Value from step ``steps`` on.
        steps: Length of the way, at least 1.
        power: Positive; above 1 the change comes late, below 1 early.

    Returns:
        The schedule.

    Examples:
        >>> import torch, harmony
        >>> value = harmony.schedule.polynomial(0.0, 1.0, steps=100, power=2.0)
        >>> [round(float(value(torch.tensor(t))), 2) for t in (0, 50, 100)]
        [0.0, 0.25, 1.0]
    """
    check_range("power", power, above=0)
    return _curve(start, end, steps, lambda share: share**power)


@factory("schedule")
def step(values: Mapping[int, float]) -> Schedule:
    """Values that hold from a step on until the next.

    Args:
        values: {step: value}, from step 0 on.

    Returns:
        The schedule.

    Examples:
        >>> import torch, harmony
        >>> gamma = harmony.schedule.step({0: -0.3, 100: 0.0})
        >>> [round(float(gamma(torch.tensor(t))), 2) for t in (0, 99, 100, 500)]
        [-0.3, -0.3, 0.0, 0.0]
    """
    (_, first), *points = _points(values)

    def schedule(step: Tensor) -> Tensor:
        value = torch.full_like(step, first, dtype=torch.float64)
        for start, y in points:
            value = torch.where(step >= start, y, value)
        return value

    return schedule


@factory("schedule")
def piecewise(values: Mapping[int, float]) -> Schedule:
    """Straight lines from point to point, and the last value after them.

    Args:
        values: {step: value}, from step 0 on.

    Returns:
        The schedule.

    Examples:
        >>> import torch, harmony
        >>> share = harmony.schedule.piecewise({0: 1.0, 100: 1.0, 200: 0.5})
        >>> [round(float(share(torch.tensor(t))), 2) for t in (0, 100, 150, 500)]
        [1.0, 1.0, 0.75, 0.5]
    """
    points = _points(values)
    lines = [(start, linear(a, b, end - start)) for (start, a), (end, b) in itertools.pairwise(points)]

    def schedule(step: Tensor) -> Tensor:
        value = torch.full_like(step, points[0][1], dtype=torch.float64)
        for start, line in lines:
            value = torch.where(step >= start, line(step - start), value)
        return value

    return schedule


@factory("schedule")
def warmup(schedule: Schedule, steps: int) -> Schedule:
    """Rise linearly from 0 to the first value of ``schedule``, then follow it from its start.

    Args:
        schedule: The schedule after the warm-up.
        steps: Length of the warm-up; 0 for none.

    Returns:
        The schedule.

    Examples:
        >>> import torch, harmony
        >>> rate = harmony.schedule.warmup(harmony.schedule.constant(0.2), steps=10)
        >>> [round(float(rate(torch.tensor(t))), 2) for t in (0, 5, 10, 20)]
        [0.0, 0.1, 0.2, 0.2]
    """
    check_range("steps", steps, at_least=0)
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
    refuse_factory(value)
    return value if callable(value) else constant(value)


def _curve(start: float, end: float, steps: int, shape: Callable[[Tensor], Tensor]) -> Schedule:
    """From ``start`` to ``end``; ``shape`` maps the share of the steps to the share of the way."""
    check_range("steps", steps, at_least=1)

    def schedule(step: Tensor) -> Tensor:
        share = (step / steps).clamp(0, 1).double()
        return torch.lerp(torch.full_like(share, start), torch.full_like(share, end), shape(share))

    return schedule


def _points(values: Mapping[int, float]) -> list[tuple[int, float]]:
    """The points of a schedule in order."""
    points = sorted(values.items())
    if not points or points[0][0] != 0:
        raise ValueError(f"the points of a schedule start at step 0; got {dict(values)}.")
    return points
