"""Times of several contestants on one point of a sweep: checked first, then interleaved on fresh random batches."""

import gc
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

import harmony
from recipes.research.benchmark.contestants import CONTESTANTS, PLAIN, Contestant, Outcome, Step, ones, pcgrad
from recipes.research.benchmark.workloads import Spec, Workload, build

log = logging.getLogger(__name__)

CHECKED_ON = 12  # samples; no multiple of the usual chunks
TOLERANCE = 1e-3  # relative error in float32; a wrong gradient is off by far more
NOISE = 3  # in half precision: times the error that the plain step itself has there


class WrongAnswer(ValueError):
    """A contestant that computes something else."""


class Timed(Protocol):
    """What every result of a race has: seconds of each round, relative to a base, and why there are none."""

    seconds: list[float]
    relative: list[float]
    skipped: str


class Entrant(NamedTuple):
    """A contestant on a workload, under the name it is shown by."""

    label: str
    contestant: Contestant
    workload: Workload


@dataclass
class Result:
    """What was found of one contestant at one point.

    Attributes:
        spec: The point.
        label: The contestant's name, and whether it was compiled.
        contestant: The contestant's name alone.
        seconds: Of each round; empty where it was skipped.
        relative: The same divided by the plain step of the same round.
        error: Relative error of its gradient with weights 1, against the plain one.
        gram_error: Relative error of its Gram blocks against the reference engine.
        memory: Peak memory of a step in bytes, above what model and batch take.
        skipped: Why it was not timed.
    """

    spec: Spec
    label: str
    contestant: str
    seconds: list[float] = field(default_factory=list)
    relative: list[float] = field(default_factory=list)
    error: float | None = None
    gram_error: float | None = None
    memory: int | None = None
    skipped: str = ""


def race(
    specs: list[Spec], names: list[str], repeats: int, limit: float, advance: Callable[[], Any] = lambda: None
) -> list[Result]:
    """Check and time contestants at one point.

    Args:
        specs: The point; a second one, compiled, runs beside it in the same rounds.
        names: Contestants; the plain step always runs.
        repeats: Rounds. In each, everybody takes a step on the same fresh batch; the order rotates.
        limit: Seconds a step may take; slower ones are skipped.
        advance: Called after the check, the warm-up and each round, ``repeats + 2`` times.

    Returns:
        One result per contestant and spec, in order.
    """
    entrants = [
        Entrant(name + (", compiled" if spec.compiled else ""), CONTESTANTS[name], workload)
        for spec in specs
        for workload in [build(spec)]
        for name in dict.fromkeys([PLAIN, *names])
    ]
    results = {e.label: Result(e.workload.spec, e.label, e.contestant.name) for e in entrants}
    steps: dict[str, Step] = {}
    draw = entrants[0].workload.draw
    size, device = specs[0].batch, specs[0].device

    checker = Checker(entrants[0].workload)
    for entrant in entrants:
        result = results[entrant.label]
        with reported(result):
            result.error, result.gram_error = checker.check(entrant)
            steps[entrant.label] = entrant.contestant.make(entrant.workload, pcgrad)
    del checker
    gc.freeze()  # what lives by now need not be searched at every step
    advance()

    for label, step in list(steps.items()):
        with reported(results[label]):
            seconds = min(timed(partial(step, draw(size)), device) for _ in range(_warm_up(results[label].spec)))
            if seconds > limit:
                raise TimeoutError(f"a step takes {seconds:.1f} s, more than the limit of {limit:g} s")
        if results[label].skipped:
            del steps[label]
    advance()

    for number in range(repeats):
        batch, labels = draw(size), list(steps)
        first = number % max(len(labels), 1)
        for label in labels[first:] + labels[:first]:
            with reported(results[label]):
                results[label].seconds.append(timed(partial(steps[label], batch), device))
            if results[label].skipped:
                del steps[label]
        advance()
    gc.unfreeze()

    base = results[PLAIN].seconds
    for result in results.values():
        relate(result, base)
    return list(results.values())


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile; of one value, three times that."""
    if len(values) < 2:
        return (values[0],) * 3 if values else (float("nan"),) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


class Checker:
    """Compares a contestant with the plain gradient and the reference engine's Gram blocks on one small batch."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.batch = workload.draw(CHECKED_ON)
        self.grams: dict[str, Tensor | None] = {}
        self.expected = self._take(CONTESTANTS[PLAIN], workload)
        self.tolerance = TOLERANCE
        if workload.spec.dtype != "float32":
            exact = self._take(CONTESTANTS[PLAIN], build(replace(workload.spec, dtype="float32")))
            self.tolerance = NOISE * self._gradient_error(exact)

    def check(self, entrant: Entrant) -> tuple[float, float | None]:
        """Relative errors of the gradient and of the Gram blocks, None where there is nothing to compare with.

        Raises:
            WrongAnswer: One of the two is above the tolerance.
        """
        outcome = self._take(entrant.contestant, entrant.workload)
        gradient = self._gradient_error(outcome)
        if not gradient <= self.tolerance:
            raise WrongAnswer(f"wrong: with weights 1 its gradient is off by {gradient:.1e} from the plain one")
        if outcome.gram is None or entrant.contestant.attribution is None:
            return gradient, None
        reference = self._reference(entrant.contestant.attribution)
        if reference is None:
            return gradient, None
        gram = relative_error([outcome.gram], [reference])
        if not gram <= 2 * self.tolerance:  # quadratic in the gradient
            raise WrongAnswer(f"wrong: its Gram blocks are off by {gram:.1e} from the reference engine's")
        return gradient, gram

    def _take(self, contestant: Contestant, workload: Workload) -> Outcome:
        """A step with weights 1; without dropout and DropToken, so that there is one right answer."""
        workload.model.eval()
        try:
            return contestant.make(workload, ones)(self.batch)
        finally:
            workload.model.train()

    def _gradient_error(self, outcome: Outcome) -> float:
        """The larger of the errors of the encoder's and the losses' gradients."""
        pairs = zip(outcome[:2], self.expected[:2], strict=True)
        return max(relative_error(list(a.values()), list(b.values())) for a, b in pairs)

    def _reference(self, attribution: str) -> Tensor | None:
        """Gram blocks by the reference engine; None where it cannot do this model."""
        if attribution not in self.grams:
            workload = self.workload
            workload.model.eval()
            try:
                self.grams[attribution] = harmony.gram_vjp(
                    workload.encode,
                    workload.losses,
                    workload.params,
                    self.batch,
                    wrt=workload.wrt,
                    attribution=attribution,
                    loss_params=workload.loss_params,
                    engine=harmony.Engine("vmap", chunk_size=CHECKED_ON // 3),
                ).gram
            except Exception as error:  # whatever a model makes of vmap
                log.warning("the Gram blocks (%s) are not checked: %s", attribution, reason(error))
                self.grams[attribution] = None
            finally:
                workload.model.train()
        return self.grams[attribution]


def relative_error(found: list[Tensor | None], expected: list[Tensor | None]) -> float:
    """Norm of the difference of two lists of tensors over the norm of the second; None counts as zeros."""
    difference = norm = 0.0
    for a, b in zip(found, expected, strict=True):
        difference += _squared(a if b is None else b if a is None else a.double() - b.double())
        norm += _squared(b)
    return (difference / norm) ** 0.5 if norm else difference**0.5


def _squared(x: Tensor | None) -> float:
    return 0.0 if x is None else float(x.double().square().sum())


def profile(spec: Spec, name: str, rows: int = 25) -> str:
    """Table of the operations in which one contestant spends its time, over three steps after a warm-up."""
    workload = build(spec)
    step = CONTESTANTS[name].make(workload, pcgrad)
    step(workload.draw(spec.batch))
    batches = [workload.draw(spec.batch) for _ in range(3)]
    activities = [torch.profiler.ProfilerActivity.CPU]
    if spec.device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        for batch in batches:
            step(batch)
    order = f"self_{spec.device}_time_total"
    return str(profiler.key_averages().table(sort_by=order, row_limit=rows, max_name_column_width=60))


def _warm_up(spec: Spec) -> int:
    return 3 if spec.compiled or spec.device == "cuda" else 1


def timed(call: Callable[[], Any], device: str, calls: int = 1) -> float:
    """Seconds per call; what the last one leaves behind is freed outside the clock."""
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
def reported(result: Timed) -> Iterator[None]:
    """Whatever a contestant raises becomes the reason why it was skipped."""
    try:
        yield
    except Exception as error:
        result.skipped = reason(error)


def relate(result: Timed, base: list[float]) -> None:
    """Divide the seconds of each round by the base's in the same; who was skipped half-way has none."""
    if result.skipped:
        result.seconds = []
    elif len(base) == len(result.seconds):
        result.relative = [a / b for a, b in zip(result.seconds, base, strict=True)]


def reason(error: Exception) -> str:
    """One line that says why a contestant does not take part."""
    text = " ".join((str(error).strip().splitlines() or [type(error).__name__])[0].split())
    text = text if len(text) <= 200 else text[:197] + "..."
    if isinstance(error, WrongAnswer | TimeoutError):
        return text
    return f"out of memory: {text}" if isinstance(error, torch.OutOfMemoryError) else f"not available: {text}"
