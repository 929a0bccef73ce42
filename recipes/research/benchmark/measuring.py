"""Check contestants at one point, time them in turns, and count their calls."""

from collections.abc import Callable
from functools import partial
from typing import Any

from recipes.research.benchmark import counting
from recipes.research.benchmark.checking import Checker
from recipes.research.benchmark.contestants import CONTESTANTS, PLAIN, pcgrad
from recipes.research.benchmark.racing import Entrant, Rules, race, reported
from recipes.research.benchmark.step_tables import Result
from recipes.research.benchmark.workloads import Spec, build


def measure(
    specs: list[Spec], names: list[str], rules: Rules, advance: Callable[[], Any] = lambda: None
) -> list[Result]:
    """Check and time contestants, and the plain step, at one point; one result per contestant and spec.

    A compiled spec runs beside the first in the same rounds, on the same batches. ``advance`` is called after the
    check, the warm-up and each round, ``repeats + 2`` times.
    """
    workloads = [build(spec) for spec in specs]
    checker = Checker(workloads[0])
    results, entrants = [], []
    for workload in workloads:
        for name in dict.fromkeys([PLAIN, *names]):
            result, contestant = Result(workload.spec, name), CONTESTANTS[name]
            results.append(result)
            with reported(result):
                result.error, result.gram_error = checker.check(contestant, workload)
                warm_up = 3 if workload.spec.compiled or rules.device == "cuda" else 1
                entrants.append(Entrant(result, contestant.make(workload, pcgrad), warm_up))
    del checker
    advance()
    race(entrants, rules, lambda: workloads[0].draw(specs[0].batch), advance)
    for entrant in entrants:
        if not entrant.timing.skipped:
            with reported(entrant.timing):
                entrant.timing.calls = calls(entrant, workloads[0].draw(specs[0].batch))
    for result in results:
        result.relate(results[0].seconds)  # of the plain step
    return results


def calls(entrant: Entrant, batch: dict[str, Any]) -> int | None:
    """The calls of a step; None for what is compiled for the CPU, which makes none that can be counted."""
    spec = entrant.timing.spec
    return None if spec.compiled and spec.device == "cpu" else counting.calls(partial(entrant.call, batch), spec.device)
