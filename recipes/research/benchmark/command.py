"""Measure what a harmonized step costs, what its cheap variants are worth, what realignment and what loading takes.

python -m recipes.research.benchmark --suite step [--workload reference] [--batch 8 16 32 64 128] [--quick]
python -m recipes.research.benchmark --suite variants [--run runs/demo]
python -m recipes.research.benchmark --suite realign [--batch 2048] [--losses 2 4] [--quick]
python -m recipes.research.benchmark --suite loader [--config recipes/configs/demo.yaml] [--data MANIFEST] [key=value ...]
python -m recipes.research.benchmark --suite options [--config recipes/configs/demo.yaml] [--memory only] [key=value ...]

`step` times every engine against the plain step, each checked first, and measures peak memory; `variants` correlates
the cheap readings of agreement with the exact ones over training; `realign` times the methods on Gram blocks against
TorchJD's; `loader` says where the time of a clip goes; `options` measures what recomputing, chunks and compiling do to
a step of the recipe. Tables, CSV and plots are under runs/benchmark.
"""

import argparse
import logging
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from recipes import config as configuration
from recipes.data.workers import WorkerError
from recipes.errors import ConfigError, DataError
from recipes.model.build import device_of
from recipes.progress import progress_bar
from recipes.research.benchmark import loader, memory, plots, realign, tables, variants
from recipes.research.benchmark import options as step_options
from recipes.research.benchmark.contestants import CONTESTANTS
from recipes.research.benchmark.timing import Result, profile, race, reason
from recipes.research.benchmark.workloads import DEFAULTS, DEMO, DTYPES, WORKLOADS, Spec, WorkloadError
from recipes.training.checkpoint import write_atomically

log = logging.getLogger(__name__)

SWEEPS = {
    "reference": {"batch": [8, 16, 32, 64, 128], "tokens": [64, 128, 256], "width": [128, 256, 512]},
    "demo": {"batch": [8, 16, 32, 64, 128]},
    "bert": {"batch": [8, 16, 32, 64, 128], "tokens": [64, 128, 256], "width": [128, 256, 512]},
    "vit": {"batch": [8, 16, 32, 64, 128], "tokens": [64, 144, 256], "width": [128, 256, 512]},
}
QUICK = {"batch": [4, 8], "tokens": [16], "width": [32]}
QUICK_LAYERS, QUICK_REPEATS, REPEATS = 2, 3, 5
BATCHES = 9  # of the loader suite
REALIGN = {"batch": 2048, "samples": 64, "full": 256}
REALIGN_QUICK = {"batch": 64, "samples": 4, "full": 8}


# --------------------------------------------------------------------------------------------------------------- step
def step_suite(options: argparse.Namespace) -> list[Path]:
    """Time, measure, write; after every point, so that an interruption loses one point at most."""
    base, points = sweep(options)
    names = options.contestants or list(CONTESTANTS)
    repeats = options.repeats or (QUICK_REPEATS if options.quick else REPEATS)
    where = options.memory or ("none" if options.quick else "base")
    facts = tables.machine(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    stem = f"step-{base.workload}" + ("" if base.dtype == "float32" else f"-{base.dtype}")
    csv, markdown, png = (options.out / f"{stem}.{ending}" for ending in ("csv", "md", "png"))

    results: list[Result] = []
    text = ""
    with progress_bar(total=len(points) * (repeats + 2), desc=base.workload, unit="round") as bar:
        for point in points:
            bar.set_postfix(B=point.batch, tokens=point.tokens, width=point.width)
            specs = [point, replace(point, compiled=True)] if options.compile else [point]
            found = race(specs, names, repeats, options.limit, bar.update)
            if where == "all" or (where == "base" and point == base):
                measure_memory(found, options.limit)
            results += found
            text = tables.report(results, base, facts)
            tables.write_csv(csv, tables.records(results, facts))
            write_atomically(markdown, text)
            if any(r.seconds for r in results):
                plots.save(png, results, base)
    print(text)
    return [csv, markdown, png]


def sweep(options: argparse.Namespace) -> tuple[Spec, list[Spec]]:
    """The base point, and all points in the order of their cost: each axis is swept with the others at the base.

    Raises:
        WorkloadError: A size that the workload does not have.
    """
    default = DEFAULTS[options.workload]
    fixed = {"device": options.device, "dtype": options.dtype, "symmetric": options.symmetric, "chunk": options.chunk}
    axes = dict(SWEEPS[options.workload])
    if options.quick:
        axes = {axis: QUICK[axis] for axis in axes}
        default = replace(default, layers=QUICK_LAYERS)
    for axis in tables.SWEPT:
        given = getattr(options, axis)
        if given and axis not in axes:
            raise WorkloadError(f"--{axis}: the {options.workload} workload has its own size")
        axes |= {axis: given} if given else {}
    for name in ("layers", "heads"):
        given = getattr(options, name)
        if given and options.workload == "demo":
            raise WorkloadError(f"--{name}: the demo workload has its own size")
        fixed |= {name: given} if given else {}
    start = {axis: value if (value := getattr(default, axis)) in values else values[0] for axis, values in axes.items()}
    base = replace(default, **fixed, **start)
    points = {replace(base, **{axis: value}) for axis, values in axes.items() for value in values}
    return base, sorted(points, key=lambda p: (p != base, p.batch * p.tokens * p.width**2))


def measure_memory(results: list[Result], limit: float) -> None:
    """Fill in the peak memory of those that were timed."""
    for r in progress_bar(iterable=results, desc="memory", unit="step", leave=False):
        if r.skipped:
            continue
        try:
            r.memory = memory.peak(r.spec, r.contestant, timeout=120 + 4 * limit)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            log.warning("no peak memory of %s: %s", r.label, reason(error))


# ----------------------------------------------------------------------------------------------------------- variants
def variants_suite(options: argparse.Namespace) -> list[Path]:
    """Correlate, write."""
    config = configuration.load(options.config, options.overrides)
    rows = variants.compare(config, options.points, options.batches, options.run)
    facts = tables.machine(device_of(config).type)
    options.out.mkdir(parents=True, exist_ok=True)
    csv, markdown = options.out / "variants.csv", options.out / "variants.md"
    text = variants.report(rows, facts)
    tables.write_csv(csv, [row | facts for row in rows])
    write_atomically(markdown, text)
    print(text)
    return [csv, markdown]


# ------------------------------------------------------------------------------------------------------------ options
def options_suite(options: argparse.Namespace) -> list[Path]:
    """Time, measure, write."""
    config = configuration.load(options.config, options.overrides)
    repeats = options.repeats or (QUICK_REPEATS if options.quick else REPEATS)
    repeats = 0 if options.memory == "only" else repeats
    with progress_bar(total=repeats + 1, desc=config.run.name, unit="round") as bar:
        results = step_options.race(
            options.config, options.overrides, options.variants or list(step_options.VARIANTS), repeats, bar.update
        )
    if options.memory != "none":
        step_options.measure_memory(results, options.config, options.overrides, timeout=120 + 20 * options.limit)
    rows = step_options.records(results, config, tables.machine(device_of(config).type))
    options.out.mkdir(parents=True, exist_ok=True)
    csv, markdown = (options.out / f"options-{config.run.name}.{ending}" for ending in ("csv", "md"))
    text = step_options.report(rows)
    tables.write_csv(csv, rows)
    write_atomically(markdown, text)
    print(text)
    return [csv, markdown]


# ------------------------------------------------------------------------------------------------------------ realign
def realign_suite(options: argparse.Namespace) -> list[Path]:
    """Check, time, write; after every size."""
    sizes = REALIGN_QUICK if options.quick else REALIGN
    repeats = options.repeats or (QUICK_REPEATS if options.quick else REPEATS)
    names = options.methods or list(realign.OWN)
    samples, full_batch = options.samples or sizes["samples"], options.full or sizes["full"]
    cases = [realign.Case(b, k, options.device) for k in options.losses for b in options.batch or [sizes["batch"]]]
    in_full = [realign.Case(full_batch, k, options.device) for k in options.losses] if "pcgrad" in names else []
    facts = tables.machine(options.device) | {"torchjd": _version("torchjd")}
    options.out.mkdir(parents=True, exist_ok=True)
    csv, markdown = options.out / "realign.csv", options.out / "realign.md"

    scaled: list[realign.Result] = []
    full: list[realign.Result] = []
    text = ""
    with progress_bar(total=(len(cases) + len(in_full)) * (repeats + 1), desc="realign", unit="round") as bar:
        for case, everything in [(c, False) for c in in_full] + [(c, True) for c in cases]:
            bar.set_postfix(B=case.batch, K=case.losses)
            if everything:
                scaled += realign.race(case, names, repeats, samples, options.limit, options.compile, bar.update)
            else:
                full += realign.race_in_full(case, repeats, options.limit, bar.update)
            text = realign.report(scaled, full, facts)
            tables.write_csv(csv, realign.records(full + scaled, facts))
            write_atomically(markdown, text)
    print(text)
    return [csv, markdown]


# ------------------------------------------------------------------------------------------------------------- loader
def loader_suite(options: argparse.Namespace) -> list[Path]:
    """Read, time, write."""
    overrides = [*options.overrides, *([f"data.manifest={options.data}"] if options.data else [])]
    config = configuration.load(options.config, overrides)
    seconds, found = loader.measure(config, options.repeats or BATCHES)
    rows = loader.records(seconds, config, found | tables.machine("cpu"))
    options.out.mkdir(parents=True, exist_ok=True)
    csv, markdown = options.out / "loader.csv", options.out / "loader.md"
    text = loader.report(rows)
    tables.write_csv(csv, rows)
    write_atomically(markdown, text)
    print(text)
    return [csv, markdown]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    options = parser().parse_args(arguments)
    try:
        if options.device == "cuda" and not torch.cuda.is_available():
            raise WorkloadError("--device cuda: there is no CUDA device here")
        if options.profile:
            print(profile(sweep(options)[0], options.profile))
            return 0
        suites = {
            "step": step_suite, "variants": variants_suite, "realign": realign_suite, "loader": loader_suite,
            "options": options_suite,
        }  # fmt: skip
        files = suites[options.suite](options)
    except (WorkloadError, ConfigError, DataError, WorkerError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("written: " + ", ".join(map(str, files)))
    return 0


def parser() -> argparse.ArgumentParser:
    """The options of all suites."""
    p = argparse.ArgumentParser(
        prog="python -m recipes.research.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--suite", choices=["step", "variants", "realign", "loader", "options"], default="step")
    p.add_argument("--out", type=Path, default=Path("runs/benchmark"), help="folder of what is written")

    step = p.add_argument_group("step")
    step.add_argument("--workload", choices=list(WORKLOADS), default="reference")
    step.add_argument("--quick", action="store_true", help="a tiny model, a minute: whether everything runs")
    positive: Any = {"type": _positive, "nargs": "+", "metavar": "N"}
    step.add_argument("--batch", **positive, help="samples; the first value, or 32, is the base of the other sweeps")
    step.add_argument("--tokens", **positive, help="tokens (of video; audio has half, text an eighth)")
    step.add_argument("--width", **positive, help="width of the encoder; VATT-small 512, VATT-medium 1024")
    step.add_argument("--layers", type=_positive, metavar="N", help="VATT-small 6, VATT-medium 12; default 4")
    step.add_argument("--heads", type=_positive, metavar="N", help="VATT-small 8, VATT-medium 16; default 4")
    step.add_argument("--symmetric", action="store_true", help="contrast both ways (reference workload)")
    step.add_argument("--chunk", type=_positive, default=8, metavar="N", help="samples per chunk, where one chunks")
    step.add_argument(
        "--repeats", type=_positive, metavar="N", help=f"rounds; default {REPEATS}, of the loader {BATCHES}"
    )
    step.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    step.add_argument("--dtype", choices=list(DTYPES), default="float32", help="bfloat16 is by autocast")
    step.add_argument("--compile", action="store_true", help="everybody once more with a compiled encoder")
    step.add_argument("--limit", type=float, default=60.0, metavar="SECONDS", help="skip what takes longer per step")
    step.add_argument("--memory", choices=["base", "all", "none", "only"], help="points to measure peak memory at")
    step.add_argument("--contestants", nargs="+", choices=list(CONTESTANTS), metavar="NAME", help="only these")
    step.add_argument(
        "--profile", choices=list(CONTESTANTS), metavar="NAME", help="print the operations of one, no more"
    )

    blocks = p.add_argument_group(
        "realign", "and of the above: --batch (samples, 2048), --quick, --repeats, --device, --compile, --limit"
    )
    blocks.add_argument("--losses", type=_several, nargs="+", default=[2, 4], metavar="K", help="losses; default 2 4")
    blocks.add_argument("--methods", nargs="+", choices=list(realign.OWN), metavar="NAME", help="only these")
    blocks.add_argument(
        "--samples", type=_positive, metavar="N", help="samples TorchJD is timed on, and scaled up from; default 64"
    )
    blocks.add_argument(
        "--full", type=_positive, metavar="N", help="batch at which PCGrad is timed with nothing scaled up; default 256"
    )

    more = p.add_argument_group(
        "variants, loader, options",
        "and for options, of the above: --repeats, --quick, --memory (none; only: no times), --limit",
    )
    more.add_argument("--config", type=Path, default=DEMO, help="recipe that is trained")
    more.add_argument("--data", type=Path, help="what the loader reads; default: the data of the recipe")
    more.add_argument(
        "--points", type=int, nargs="+", default=[0, 100, 200, 400], metavar="STEP", help="when to compare"
    )
    more.add_argument("--batches", type=_positive, default=4, metavar="N", help="batches compared at each point")
    more.add_argument("--run", type=Path, help="a run's folder or checkpoint: compare there, train nothing")
    more.add_argument("--variants", nargs="+", choices=list(step_options.VARIANTS), metavar="NAME", help="only these")
    more.add_argument("overrides", nargs="*", metavar="key=value", help="override keys of the recipe")
    p.epilog = "contestants: " + "; ".join(CONTESTANTS)
    return p


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def _several(text: str) -> int:
    value = int(text)
    if value < 2:
        raise argparse.ArgumentTypeError(f"{value}: there is nothing to realign with fewer than two losses")
    return value


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main())
