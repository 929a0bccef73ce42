"""What the suite on a GPU writes: a report for people, a CSV of every step, and all of it as JSON."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.files import write_atomically
from recipes.research.benchmark import machine, step_tables, tables
from recipes.research.benchmark.contestants import PLAIN
from recipes.research.benchmark.racing import MIB, quartiles
from recipes.research.benchmark.step_tables import Result


@dataclass
class GpuResult(Result):
    """What was measured of one contestant on one model."""

    title: str = ""  # of the model
    waits: str = ""  # whether a step waits for the device: "no", or where


def records(results: list[GpuResult], about: dict[str, Any]) -> list[dict[str, Any]]:
    """One flat record per contestant and model."""
    rows = []
    for title in dict.fromkeys(r.title for r in results):  # the ratios are those of a model
        own = [r for r in results if r.title == title]
        pairs = zip(own, step_tables.records(own, about), strict=True)
        rows += [{"model": title} | row | {"waits": r.waits} for r, row in pairs]
    return rows


def report(exactness: list[GpuResult], results: list[GpuResult], about: dict[str, Any], tests: str) -> str:
    """Markdown: exactness, a table of steps, the outcome of the tests."""
    lines = [
        "## Steps on a GPU",
        "",
        f"{machine.described(about)}.",
        "",
        "### Exactness",
        "",
        "Relative errors in float32 on a small model: of the gradient with weights of one, to the plain one; of the "
        "Gram blocks, to the loop over samples.",
        "",
        *tables.markdown(["step", "gradient", "Gram blocks"], [_errors(r) for r in exactness]),
        "",
        "### Time, memory, launches",
        "",
        "Medians of rounds in turns, quartiles in brackets, ratios round by round; memory is the peak above model and "
        "batch; calls are kernels (on a CPU, ops that are no views); waits: where a step waits for the device. No step "
        "verifies itself.",
        "",
        *tables.markdown(HEAD, [_row(r, results) for r in results], words=(0, 1, 7)),
        "",
        f"Tests on the device: {tests}",
    ]
    return "\n".join(lines) + "\n"


HEAD = ["model", "step", "ms", "to plain", "peak MiB", "calls", "to plain", "waits"]


def _errors(result: GpuResult) -> list[str]:
    if result.skipped:
        return [result.contestant, result.skipped]
    return [result.contestant, *("" if e is None else f"{e:.0e}" for e in (result.error, result.gram_error))]


def _row(result: GpuResult, results: list[GpuResult]) -> list[str]:
    if result.skipped:
        return [result.title, result.contestant, result.skipped]
    plain = next(r for r in results if r.title == result.title and r.contestant == PLAIN)
    return [
        result.title,
        result.contestant,
        f"{1e3 * quartiles(result.seconds)[1]:.1f}",
        tables.median(result.ratios, 2),
        "" if result.memory is None else f"{result.memory / MIB:.0f}",
        "" if result.calls is None else str(result.calls),
        step_tables.shown_ratio(result.calls, plain.calls),
        result.waits,
    ]


def write(
    out: Path, exactness: list[GpuResult], results: list[GpuResult], about: dict[str, Any], tests: str
) -> list[Path]:
    """Write gpu.csv, gpu.md and gpu.json; returns their paths."""
    steps = records(results, about)
    files = tables.write(out, "gpu", steps, report(exactness, results, about, tests))
    errors = [{"step": r.contestant, "gradient": r.error, "gram": r.gram_error, "why": r.skipped} for r in exactness]
    everything = {"about": about, "exactness": errors, "steps": steps, "tests": tests}
    write_atomically(out / "gpu.json", json.dumps(everything, indent=1) + "\n")
    return [*files, out / "gpu.json"]
