"""Schedules: functions of the step count, for thresholds and temperatures that move during training.

A schedule maps a 0-d step tensor to a 0-d float64 tensor, on the host: reading it never waits for a device.
"""

import itertools
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from harmony.arguments import check_range
from harmony.members import factory, refuse_factory

Schedule = Callable[[Tensor], Tensor]


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
        >>> gamma = harmony.schedule.linear(-0.3, 0.0, steps=100)
        >>> [round(float(gamma(torch.tensor(t))), 2) for t in (0, 50, 100, 200)]
        [-0.3, -0.15, 0.0, 0.0]
    """
    return _curve(start, end, steps, lambda share: share)


@factory("schedule")
def cosine(start: float, end: float, steps: int, period: float = 0.5) -> Schedule:
    """From ``start`` to ``end`` along a part of a period of a cosine, then ``end``.

    Args:
        start: Value at step 0.
        end: Value from step ``steps`` on.
        steps: Length of the way, at least 1.
        period: The part, in (0, 0.5]. At 1/4 the way is slow at first and fast at the end, like the learning rate of
            VATT (Akbari et al., 2021, arXiv:2104.11178, section 4.2).

    Returns:
        The schedule.

    Examples:
        >>> value = harmony.schedule.cosine(1.0, 0.0, steps=100)
        >>> [round(float(value(torch.tensor(t))), 3) for t in (0, 25, 50, 100)]
        [1.0, 0.854, 0.5, 0.0]
    """
    check_range("period", period, above=0, at_most=0.5)
    angle = 2 * math.pi * period
    return _curve(start, end, steps, lambda share: (1 - torch.cos(angle * share)) / (1 - math.cos(angle)))


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
        >>> value = harmony.schedule.polynomial(0.0, 1.0, steps=100, power=2.0)
        >>> [round(float(value(torch.tensor(t))), 2) for t in (0, 50, 100)]
        [0.0, 0.25, 1.0]
    """
    check_range("power", power, above=0)
    return _curve(start, end, steps, lambda share: share**power)


@factory("schedule")
def piecewise(values: Mapping[int, float], interpolate: bool = True) -> Schedule:
    """From point to point, and the last value after them.

    Args:
        values: {step: value}, from step 0 on.
        interpolate: Straight lines between the points; otherwise each value holds until the next.

    Returns:
        The schedule.

    Examples:
        >>> share = harmony.schedule.piecewise({0: 1.0, 100: 1.0, 200: 0.5})
        >>> [round(float(share(torch.tensor(t))), 2) for t in (0, 100, 150, 500)]
        [1.0, 1.0, 0.75, 0.5]
    """
    points = sorted(values.items())
    if not points or points[0][0] != 0:
        raise ValueError(f"the points of a schedule start at step 0; got {dict(values)}.")
    pieces = [(0, as_schedule(points[0][1]))]
    for (begin, a), (end, b) in itertools.pairwise(points):
        pieces.append((begin, linear(a, b, end - begin)) if interpolate else (end, as_schedule(b)))

    def schedule(step: Tensor) -> Tensor:
        value = torch.full_like(step, torch.nan, dtype=torch.float64)
        for begin, piece in pieces:
            value = torch.where(step >= begin, piece(step - begin), value)
        return value

    return schedule


@factory("schedule")
def warmup(schedule: float | Schedule, steps: int) -> Schedule:
    """Rise linearly from 0 to the first value of ``schedule``, then follow it from its start.

    Args:
        schedule: The schedule after the warm-up, or a number.
        steps: Length of the warm-up; 0 for none.

    Returns:
        The schedule.

    Examples:
        >>> rate = harmony.schedule.warmup(0.2, steps=10)
        >>> [round(float(rate(torch.tensor(t))), 2) for t in (0, 5, 10, 20)]
        [0.0, 0.1, 0.2, 0.2]
    """
    check_range("steps", steps, at_least=0)
    after = as_schedule(schedule)
    if steps == 0:
        return after
    return lambda step: after((step - steps).clamp(min=0)) * (step / steps).clamp(max=1)


def as_schedule(value: float | Schedule) -> Schedule:
    """A schedule as it is; a number as the constant schedule of that value.

    Args:
        value: A number or a schedule.

    Returns:
        The schedule.

    Examples:
        >>> harmony.schedule.as_schedule(0.1)(torch.tensor(7))
        tensor(0.1000, dtype=torch.float64)
    """
    refuse_factory(value)
    return value if callable(value) else lambda step: torch.full_like(step, value, dtype=torch.float64)


def _curve(start: float, end: float, steps: int, shape: Callable[[Tensor], Tensor]) -> Schedule:
    """From ``start`` to ``end``; ``shape`` maps the share of the steps to the share of the way."""
    check_range("steps", steps, at_least=1)

    def schedule(step: Tensor) -> Tensor:
        share = (step / steps).clamp(0, 1).double()
        return torch.lerp(torch.full_like(share, start), torch.full_like(share, end), shape(share))

    return schedule
