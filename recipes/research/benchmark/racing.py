"""Race entrants: time them in turns, round by round, each on the same input within a round."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

MIB = 2**20
MOST_CALLS = 200  # of one reading


class WrongAnswer(ValueError):
    """An entrant that computes something else."""


@dataclass(kw_only=True)
class Timing:
    """What was measured of an entrant."""

    seconds: list[float] = field(default_factory=list)  # of each round; empty if it was skipped
    ratios: list[float] = field(default_factory=list)  # to the base in the same round
    memory: int | None = None  # peak of a call, bytes above what was held before
    skipped: str = ""  # why

    def relate(self, base: list[float]) -> None:
        """Divide the seconds of each round by the base's. An entrant that was skipped half-way keeps none."""
        if self.skipped:
            self.seconds = []
        elif len(base) == len(self.seconds):
            self.ratios = [a / b for a, b in zip(self.seconds, base, strict=True)]

    def columns(self) -> dict[str, Any]:
        columns: dict[str, Any] = {"rounds": len(self.seconds)}
        for name, values in (("seconds", self.seconds), ("ratio", self.ratios)):
            columns[f"{name}_q1"], columns[name], columns[f"{name}_q3"] = quartiles(values)
        columns["memory_mib"] = None if self.memory is None else round(self.memory / MIB, 1)
        return columns | {"skipped": self.skipped}


@dataclass
class Entrant:
    """Who takes part in a race."""

    timing: Timing  # what the race fills in
    call: Callable[[Any], Any]  # what is timed; it takes the input of the round
    warm_up: int = 1  # calls before the race; the fastest is compared with the limit
    scale: float = 1.0  # factor on the seconds, if the call does only a part of the work


@dataclass(frozen=True)
class Rules:
    """How a race goes."""

    repeats: int  # rounds
    limit: float = math.inf  # seconds of a call; slower entrants are skipped
    device: str = "cpu"
    at_least: float = 0.0  # seconds of a reading; faster calls are repeated


def race(
    entrants: list[Entrant],
    rules: Rules,
    draw: Callable[[], Any] = lambda: None,
    advance: Callable[[], Any] = lambda: None,
) -> None:
    """Warm everybody up, then time them in rounds. The order rotates from round to round.

    ``draw`` makes the input of a round; ``advance`` is called after the warm-up and each round, ``repeats + 1`` times.
    """
    gc.collect()
    gc.freeze()  # the collector need not search what exists by now at every reading
    try:
        readings = [(entrant, _calls(entrant, rules, draw())) for entrant in entrants]
        advance()
        for number in range(rules.repeats):
            first = number * len(entrants) // rules.repeats  # another start and other neighbours every time
            value = draw()
            for entrant, calls in readings[first:] + readings[:first]:
                if not entrant.timing.skipped:
                    with reported(entrant.timing):
                        seconds = timed(partial(entrant.call, value), rules.device, calls)
                        entrant.timing.seconds.append(entrant.scale * seconds)
            advance()
    finally:
        gc.unfreeze()


def _calls(entrant: Entrant, rules: Rules, value: Any) -> int:
    """Warm an entrant up; returns the calls of a reading."""
    with reported(entrant.timing):
        seconds = min(timed(partial(entrant.call, value), rules.device) for _ in range(entrant.warm_up))
        if seconds > rules.limit:
            raise TimeoutError(f"a call takes {seconds:.1f} s, more than the limit of {rules.limit:g} s")
        return min(max(math.ceil(rules.at_least / seconds), 1), MOST_CALLS)
    return 0


def timed(call: Callable[[], Any], device: str, calls: int = 1) -> float:
    """Seconds per call. What the last call returns is freed outside the clock."""
    gc.collect()
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        outcome = call()
    _synchronize(device)
    seconds = time.perf_counter() - start
    del outcome
    return seconds / calls


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@contextmanager
def reported(timing: Timing) -> Iterator[None]:
    """Whatever is raised inside becomes the reason why the entrant is skipped."""
    try:
        yield
    except Exception as error:
        timing.skipped = reason(error)


def reason(error: Exception) -> str:
    """One line that says why an entrant does not take part."""
    text = " ".join((str(error).strip().splitlines() or [type(error).__name__])[0].split())
    text = text if len(text) <= 200 else text[:197] + "..."
    if isinstance(error, WrongAnswer | TimeoutError):
        return text
    return f"out of memory: {text}" if isinstance(error, torch.OutOfMemoryError) else f"not available: {text}"


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile; three times the value if there is one, NaN if there is none."""
    if len(values) < 2:
        return (values[0],) * 3 if values else (math.nan,) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
