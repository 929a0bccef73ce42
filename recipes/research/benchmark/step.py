"""Time every engine against the plain step, each checked first, and measure its peak memory.

python -m recipes.research.benchmark step workload=reference batch=[8,16,32]
python -m recipes.research.benchmark step batch=[4,8] tokens=[16] width=[32] layers=2 repeats=3 memory=none    a minute

The suite sweeps batch, tokens and width, each with the others at the base point, and writes step-WORKLOAD.csv, .md and
.png after every point: an interruption loses one point at most.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import torch

from recipes.cli import Command
from recipes.keys import key
from recipes.progress import progress_bar
from recipes.research.benchmark import machine, peak, step_plot, step_tables, tables
from recipes.research.benchmark.contestants import CONTESTANTS, pcgrad
from recipes.research.benchmark.measuring import measure
from recipes.research.benchmark.racing import reason
from recipes.research.benchmark.step_tables import SWEPT, Result
from recipes.research.benchmark.suite import CompileKeys, unknown
from recipes.research.benchmark.workloads import ANY_LOSSES, Name, Spec, WorkloadError, build, default

log = logging.getLogger(__name__)

SWEEP = {"batch": [8, 16, 32, 64, 128], "tokens": [64, 128, 256], "width": [128, 256, 512]}
PICTURES = SWEEP | {"tokens": [64, 144, 256]}
VATT = {"batch": [8, 16, 32], "tokens": [784], "width": [512, 1024]}
SWEEPS = dict.fromkeys(get_args(Name), SWEEP) | {"vit": PICTURES, "cnn": PICTURES, "vatt": VATT}
SWEEPS["demo"] = {"batch": SWEEP["batch"]}


@dataclass
class StepKeys(CompileKeys):
    """What to measure, and at which sizes."""

    workload: Name = key("reference", "model, losses and data")
    batch: list[int] = key([], "samples; [] is the workload's sweep, and 32 or the first value its base", least=1)
    tokens: list[int] = key([], "tokens of video (audio has half, text an eighth); [] as for batch", least=1)
    width: list[int] = key([], "of the encoder: VATT-small 512, VATT-medium 1024; [] as for batch", least=1)
    layers: int | None = key(None, "of the encoder: VATT-small 6, VATT-medium 12; null: 4", least=1)
    heads: int | None = key(None, "of the encoder: VATT-small 8, VATT-medium 16; null: 4", least=1)
    losses: int | None = key(None, f"of {', '.join(ANY_LOSSES)}; null: 2", least=2)
    symmetric: bool = key(False, "contrast both ways (reference workload)")
    chunk: int = key(8, "samples per chunk, for contestants that work in chunks", least=1)
    dtype: Literal["float32", "bfloat16"] = key("float32", "bfloat16 is by autocast")
    memory: Literal["base", "all", "none"] = key("base", "points to measure peak memory at")
    contestants: list[str] = key(list(CONTESTANTS), "those who take part beside the plain step")
    profile: str | None = key(None, "contestant whose operations to print, and nothing more")

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from unknown("contestants", self.contestants, list(CONTESTANTS))
        if self.losses not in (None, 2) and self.workload not in ANY_LOSSES:
            yield f"losses: the {self.workload} workload has two; {', '.join(ANY_LOSSES)} take any number"
        yield from unknown("profile", [self.profile] if self.profile else [], list(CONTESTANTS))


def run(keys: StepKeys) -> None:
    """Race at every point of the sweep, measure memory, write."""
    base, points = sweep(keys)
    if keys.profile:
        print(profile(base, keys.profile))
        return
    about = machine.facts(keys.device)
    marks = [base.dtype] * (base.dtype != "float32") + [f"{base.losses}-losses"] * (base.losses != 2)
    stem = "-".join(["step", base.workload, *marks])
    results: list[Result] = []
    with progress_bar(total=len(points) * (keys.repeats + 2), desc=base.workload, unit="round") as bar:
        for point in points:
            bar.set_postfix(B=point.batch, tokens=point.tokens, width=point.width)
            specs = [point, replace(point, compiled=True)] if keys.compile else [point]
            measured = measure(specs, keys.contestants, keys.rules(), bar.update)
            if keys.memory == "all" or (keys.memory == "base" and point == base):
                measure_memory(measured, keys.limit)
            results += measured
            text = step_tables.report(results, base, about)
            files = tables.write(keys.out, stem, step_tables.records(results, about), text)
            if any(r.seconds for r in results):
                files.append(step_plot.save(keys.out / f"{stem}.png", results, base))
    tables.show(text, files)


def sweep(keys: StepKeys) -> tuple[Spec, list[Spec]]:
    """The base point, and all points in the order of their cost: each axis is swept with the others at the base."""
    start = default(keys.workload)
    axes = dict(SWEEPS[keys.workload])
    asked = {name: value for name in (*SWEPT, "layers", "heads", "losses") if (value := getattr(keys, name))}
    for name in asked:
        if name not in axes and (name in SWEPT or keys.workload == "demo"):
            raise WorkloadError(f"{name}: the {keys.workload} workload has its own size")
    axes |= {axis: values for axis, values in asked.items() if axis in SWEPT}
    fixed = {name: getattr(keys, name) for name in ("device", "dtype", "symmetric", "chunk")}
    fixed |= {name: size for name, size in asked.items() if name not in SWEPT}
    fixed |= {axis: at if (at := getattr(start, axis)) in values else values[0] for axis, values in axes.items()}
    base = replace(start, **fixed)
    points = {replace(base, **{axis: value}) for axis, values in axes.items() for value in values}
    return base, sorted(points, key=lambda p: (p != base, p.batch * p.tokens * p.width**2))


def measure_memory(results: list[Result], limit: float) -> None:
    """Fill in the peak memory of those that were timed."""
    for result in progress_bar(iterable=results, desc="memory", unit="step", leave=False):
        if not result.skipped:
            request = {"contestant": result.contestant, "spec": vars(result.spec)}
            try:
                result.memory = peak.alone(__name__, request, timeout=120 + 4 * limit)
            except (RuntimeError, TimeoutError) as error:
                log.warning("no peak memory of %s: %s", result.label, reason(error))


def one_step(contestant: str, spec: dict[str, Any]) -> tuple[Callable[[], Any], str]:
    """A step of a contestant on a batch, after a warm-up, and its device; see `peak`."""
    workload = build(Spec(**spec))
    step = CONTESTANTS[contestant].make(workload, pcgrad)
    step(workload.draw(peak.WARM_UP))
    return partial(step, workload.draw(workload.spec.batch)), workload.spec.device


def profile(spec: Spec, name: str, rows: int = 25) -> str:
    """Table of the operations in which one contestant spends its time, over three steps after a warm-up."""
    workload = build(spec)
    step = CONTESTANTS[name].make(workload, pcgrad)
    step(workload.draw(spec.batch))
    batches = [workload.draw(spec.batch) for _ in range(3)]
    with torch.profiler.profile() as profiler:
        for batch in batches:
            step(batch)
    order = f"self_{spec.device}_time_total"
    return str(profiler.key_averages().table(sort_by=order, row_limit=rows, max_name_column_width=60))


def plan(keys: StepKeys) -> str:
    base, points = sweep(keys)
    names = ", ".join(keys.contestants)
    sizes = "; ".join(f"B={p.batch}, {p.tokens} tokens, width {p.width}" for p in points)
    return f"{keys.repeats} rounds at each of {len(points)} points of the {base.workload} workload: {sizes}.\n{names}."


COMMAND = Command("recipes.research.benchmark step", __doc__, StepKeys, run, plan)
