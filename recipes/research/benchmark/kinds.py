"""What a harmonized step costs by kind of model, and how the cost grows with the number of losses.

python -m recipes.research.benchmark kinds batch=16 repeats=5
python -m recipes.research.benchmark kinds workloads=[cnn,lora,moe] losses=[]

Every model at its own sizes, as the suite `step` has them, and the reference with 2, 3, 4 and 8 losses; each contestant
is checked first. bert, vit, llama and whisper need the package transformers. Writes kinds.csv and kinds.md.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from recipes.cli import Command
from recipes.keys import key
from recipes.progress import progress_bar
from recipes.research.benchmark import machine, step_tables, tables
from recipes.research.benchmark.contestants import CACHED, CHUNKED, CONTESTANTS, FUSED, PLAIN
from recipes.research.benchmark.measuring import measure
from recipes.research.benchmark.racing import Rules, reported
from recipes.research.benchmark.step_tables import Result
from recipes.research.benchmark.suite import DeviceKeys, unknown
from recipes.research.benchmark.workloads import BUILDERS, Spec, default

KINDS = [name for name in BUILDERS if name != "vatt"]  # its sizes are a GPU's
GROWING = "reference"


@dataclass
class KindsKeys(DeviceKeys):
    """Which models, and at which sizes."""

    workloads: list[str] = key(KINDS, "models, with two losses each")
    losses: list[int] = key([2, 3, 4, 8], f"numbers of losses, of {GROWING}", least=2)
    batch: int = key(16, "samples", least=2)
    tokens: int | None = key(None, "null: each model's own", least=1)
    width: int | None = key(None, "null: each model's own", least=1)
    layers: int | None = key(None, "null: each model's own", least=1)
    chunk: int = key(8, "samples per chunk, for contestants that work in chunks", least=1)
    dtype: Literal["float32", "bfloat16"] = key("float32", "bfloat16 is by autocast")
    contestants: list[str] = key([FUSED, CHUNKED, CACHED, "features, activation"], "beside the plain step")

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if not self.contestants:
            yield "contestants=[] must name one"
        if not self.workloads and not self.losses:
            yield "workloads=[] and losses=[] leave nothing to measure: name a model or a number of losses"
        yield from unknown("workloads", self.workloads, list(BUILDERS))
        yield from unknown("contestants", self.contestants, list(CONTESTANTS))


def run(keys: KindsKeys) -> None:
    """Measure at every point, and write after each."""
    about, results = machine.facts(keys.device), []
    points = specs(keys)
    with progress_bar(total=len(points) * (keys.repeats + 2), desc="kinds", unit="round") as bar:
        for spec in points:
            bar.set_postfix(workload=spec.workload, losses=spec.losses)
            results += attempt(spec, keys.contestants, keys.rules(), bar.update)
            text = report(results, keys, about)
            files = tables.write(keys.out, "kinds", step_tables.records(results, about), text)
    tables.show(text, files)


def specs(keys: KindsKeys) -> list[Spec]:
    """A point for each workload, then one for each further number of losses."""
    own = {name: getattr(keys, name) for name in ("tokens", "width", "layers") if getattr(keys, name) is not None}
    shared = {name: getattr(keys, name) for name in ("batch", "chunk", "device", "dtype")}
    sized = [replace(default(name), **shared, **({} if name == "demo" else own)) for name in keys.workloads]
    growing = [replace(default(GROWING), losses=number, **shared, **own) for number in keys.losses]
    return list(dict.fromkeys(sized + growing))


def attempt(spec: Spec, names: list[str], rules: Rules, advance: Callable[[], Any] = lambda: None) -> list[Result]:
    """`measure`; a workload that cannot be built gives one result, with the reason."""
    absent = Result(spec, PLAIN)
    with reported(absent):
        return measure([spec], names, rules, advance)
    return [absent]


def report(results: list[Result], keys: KindsKeys, about: dict[str, Any]) -> str:
    """Two tables of ratios to the plain step, by workload and by number of losses; then who was skipped, and why."""
    points = {r.spec.point: {} for r in results}
    for r in results:
        points[r.spec.point][r.label] = r
    kinds = {_title(p): at for p, at in points.items() if p.workload in keys.workloads and p.losses == 2}
    growing = {str(p.losses): at for p, at in points.items() if p.workload == GROWING and p.losses in keys.losses}
    lines = [
        "## What a step costs by kind of model",
        "",
        f"B={keys.batch}, {keys.dtype}; {machine.described(about)}. Medians of {keys.repeats} rounds with quartiles in "
        "brackets, as ratios to the plain step; calls are ops that are no views (on CUDA: kernels), to the plain step.",
        "",
        *_table("model", kinds, keys.contestants),
        "",
        f"### By number of losses, {GROWING}",
        "",
        *_table("losses", growing, keys.contestants),
        "",
        *(f"- {_title(r.spec)}, K={r.spec.losses}, {r.label}: {r.skipped}" for r in results if r.skipped),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _title(spec: Spec) -> str:
    return f"{spec.workload}: {spec.layers} layers, width {spec.width}, {spec.tokens} tokens"


def _table(what: str, points: dict[str, dict[str, Result]], contestants: list[str]) -> list[str]:
    """A row for each point: seconds of the plain step, ratios of time, and the first contestant's ratio of calls."""
    first, rows = contestants[0], []
    for title, at in points.items():
        plain = at[PLAIN]
        ratios = [tables.median(at[name].ratios, 2) if name in at else "" for name in contestants]
        calls = step_tables.shown_ratio(at[first].calls, plain.calls) if first in at else ""
        rows.append([title, tables.median(plain.seconds, 3), *ratios, calls])
    return tables.markdown([what, "plain, seconds", *contestants, f"calls, {first}"], rows)


def plan(keys: KindsKeys) -> str:
    """Rounds, contestants and points."""
    points = ", ".join(f"{spec.workload} K={spec.losses}" for spec in specs(keys))
    return f"{keys.repeats} rounds of {', '.join([PLAIN, *keys.contestants])} on each of: {points}."


COMMAND = Command("recipes.research.benchmark kinds", __doc__, KindsKeys, run, plan)
