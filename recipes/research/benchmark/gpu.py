"""What a harmonized step costs on a GPU, in a few minutes, with torch and this repository alone.

PYTHONPATH=src python -m recipes.research.benchmark gpu
PYTHONPATH=src python -m recipes.research.benchmark gpu device=cpu repeats=2    tries the suite itself, on small sizes

First the contestants are compared with the plain gradient and with the loop over samples, in float32, on a small model.
Then each takes its turns on VATT's transformer: time, peak memory, launches, and whether a step waits for the device;
peers come after. Last come the library's tests on the device. What fails is a row that says so. Writes gpu.csv, gpu.md
and gpu.json after every model. Without keys the suite needs no package beside torch; the tests need pytest and
hypothesis.
"""

import gc
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch

import harmony
from recipes.cli import Command
from recipes.errors import ConfigError
from recipes.keys import key
from recipes.research.benchmark import counting, gpu_tests, machine, peak
from recipes.research.benchmark.checking import Checker
from recipes.research.benchmark.contestants import (
    PLAIN,
    TORCHJD,
    Contestant,
    compiled,
    harmonized,
    pcgrad,
    plain,
    torchjd,
)
from recipes.research.benchmark.gpu_tables import GpuResult, report, write
from recipes.research.benchmark.racing import Entrant, Rules, race, reason, reported
from recipes.research.benchmark.suite import SuiteKeys, unknown
from recipes.research.benchmark.tables import show
from recipes.research.benchmark.workloads import Spec, build
from recipes.research.benchmark.workloads.trimodal import VATT_MEDIUM, VATT_SMALL

log = logging.getLogger(__name__)
FAST, LOOP = harmony.Engine("tape", verify="never"), harmony.Engine("loop")
BACKBONE, COMPILED = "Gram over the backbone", "plain, torch.compile"
HARMONIZED = {
    BACKBONE: Contestant(harmonized(FAST), "activation"),
    "in chunks of 8": Contestant(harmonized(replace(FAST, chunk_size=8)), "activation"),
    "over the last block": Contestant(harmonized(FAST, part="last block"), "activation", "last block"),
    "over its last projection": Contestant(harmonized(FAST, part="last projection"), "activation", "last projection"),
    "in feature space": Contestant(harmonized(FAST, space="features")),
}
PEERS = {
    COMPILED: Contestant(compiled),
    "loop over samples": Contestant(harmonized(LOOP), "activation"),
    TORCHJD: Contestant(torchjd, "activation"),
}
CONTESTANTS = {PLAIN: Contestant(plain), **HARMONIZED, **PEERS}
WARM_UP = 2
EXACT = {"tokens": 24, "width": 64, "layers": 2, "heads": 4}
TESTS_LIMIT = 240  # seconds


@dataclass
class GpuKeys(SuiteKeys):
    """How much to measure, and where."""

    device: Literal["cuda", "cpu"] = key("cuda", "to compute on; cpu is for small sizes")
    repeats: int = key(5, "rounds", least=1)
    limit: float = key(10.0, "seconds that a step may take; slower contestants are skipped", more_than=0)
    seconds: float = key(180.0, "no model is begun after these", least=0)
    contestants: list[str] = key(list(CONTESTANTS), "those who take part beside the plain step")
    tests: bool = key(True, "run the library's tests on the device at the end")

    def problems(self) -> Iterator[str]:
        yield from unknown("contestants", self.contestants, list(CONTESTANTS))


@dataclass(frozen=True)
class Model:
    """One model to measure on, in a precision."""

    title: str
    spec: Spec
    names: tuple[str, ...]  # of contestants
    tf32: bool = False


def run(keys: GpuKeys) -> None:
    """Check, measure model after model, run the tests; write after each.

    Raises:
        ConfigError: There is no such device.
    """
    if keys.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: there is no CUDA device here; device=cpu tries the suite on small sizes")
    began, rules = time.monotonic(), Rules(keys.repeats, keys.limit, keys.device)
    about, names = machine.facts(keys.device), tuple(dict.fromkeys([PLAIN, *keys.contestants]))
    with precision(tf32=False):
        exactness = check(Spec("vatt", device=keys.device, **EXACT), names)
    results: list[GpuResult] = []
    for model in models(keys.device, names):
        if time.monotonic() - began > keys.seconds:
            late = f"left out: begun after {keys.seconds:g} s"
            results.append(GpuResult(model.spec, PLAIN, title=model.title, skipped=late))
            continue
        with precision(model.tf32):
            results += attempt(model, rules)
        torch.compiler.reset()  # what was compiled holds the model
        gc.collect()
        if keys.device == "cuda":
            torch.cuda.empty_cache()
        write(keys.out, exactness, results, about, "not run yet")
    tests = gpu_tests.outcome(keys.device, TESTS_LIMIT) if keys.tests else "not run: tests=false"
    show(report(exactness, results, about, tests), write(keys.out, exactness, results, about, tests))


def models(device: str, names: tuple[str, ...]) -> list[Model]:
    """The models in their order; the peers, which take long, come last, and TorchJD, which cannot autocast, in TF32."""
    if device == "cpu":
        return [Model("VATT, tiny, 12 clips, float32", Spec("vatt", batch=12, device=device, **EXACT), names)]
    spec = partial(Spec, "vatt", device=device)
    half = partial(spec, dtype="bfloat16")
    small, single = half(batch=32, **VATT_SMALL), spec(batch=32, **VATT_SMALL)
    ours = tuple(name for name in names if name not in PEERS)
    peers = tuple(name for name in names if name in (PLAIN, *PEERS) and name != TORCHJD)
    every = [
        Model("VATT-small, 32 clips, bfloat16", small, ours),
        Model("VATT-medium, 16 clips, bfloat16", half(batch=16, **VATT_MEDIUM), ours),
        Model("VATT-small, 32 clips, TF32", single, ours, tf32=True),
        Model("VATT-small, 128 clips, bfloat16", half(batch=128, **VATT_SMALL), ours),
        Model("VATT-small, 32 clips, bfloat16, peers", small, peers),
        Model("VATT-small, 32 clips, TF32, peers", single, tuple(n for n in names if n in (PLAIN, TORCHJD)), tf32=True),
    ]
    return [model for model in every if model.names != (PLAIN,)] or every[:1]


def check(spec: Spec, names: tuple[str, ...]) -> list[GpuResult]:
    """The errors of contestants on a few samples, against the plain gradient and the loop's Gram blocks.

    What torch compiles is taken for right: it would take longer than all others together.
    """
    workload = build(spec)
    checker = Checker(workload, reference=LOOP)
    results = [GpuResult(spec, name, title="exactness") for name in names if name != COMPILED]
    for result in results:
        with reported(result):
            result.error, result.gram_error = checker.check(CONTESTANTS[result.contestant], workload)
    return results


def attempt(model: Model, rules: Rules) -> list[GpuResult]:
    """`measure`; a model that does not fit gives one result, with the reason."""
    absent = GpuResult(model.spec, PLAIN, title=model.title)
    with reported(absent):
        return measure(model, rules)
    return [absent]


def measure(model: Model, rules: Rules) -> list[GpuResult]:
    """Time contestants in turns on one model, then observe a step of each."""
    workload = build(model.spec)
    results, entrants = [], []
    for name in model.names:
        result = GpuResult(model.spec, name, title=model.title)
        results.append(result)
        with reported(result):
            entrants.append(Entrant(result, CONTESTANTS[name].make(workload, pcgrad), WARM_UP))
    race(entrants, rules, lambda: workload.draw(model.spec.batch))
    for entrant in entrants:
        if not entrant.timing.skipped:
            observe(entrant, workload.draw(model.spec.batch))
    for result in results:
        result.relate(results[0].seconds)  # of the plain step
    return results


def observe(entrant: Entrant, batch: dict[str, torch.Tensor]) -> None:
    """Fill in what a few more steps show: launches; on a GPU the peak of memory, and whether a step waits."""
    result, step = entrant.timing, partial(entrant.call, batch)
    looks: dict[str, Callable[[], Any]] = {}
    if result.spec.device == "cuda":
        looks = {"memory": lambda: peak.of_call(step, "cuda"), "waits": lambda: synchronisation(step)}
    if result.spec.device == "cuda" or result.contestant != COMPILED:  # on a CPU, what is compiled makes no calls
        looks["calls"] = lambda: counting.calls(step, result.spec.device, tries=1)
    for name, look in looks.items():
        try:
            setattr(result, name, look())
        except Exception as error:  # a profiler that may not look: the time stays
            log.warning("no %s of %s: %s", name, result.contestant, reason(error))


def synchronisation(step: Callable[[], Any]) -> str:
    """Why a step waits for the device; "no" if it does not."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
        return "no"
    except RuntimeError as error:
        return reason(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextmanager
def precision(tf32: bool) -> Iterator[None]:
    """Whether products of float32 are rounded to TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def plan(keys: GpuKeys) -> str:
    """Models and contestants."""
    lines = (f"{model.title}: {', '.join(model.names)}." for model in models(keys.device, tuple(keys.contestants)))
    return "\n".join(lines)


COMMAND = Command("recipes.research.benchmark gpu", __doc__, GpuKeys, run, plan)
