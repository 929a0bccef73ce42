"""What the step suite writes: a CSV with everything, a table for people, and the facts of the machine."""

import csv
import io
import math
import os
import platform
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from recipes.files import write_atomically
from recipes.research.benchmark.contestants import CACHED, CHUNKED, FUSED, PLAIN, TORCHJD
from recipes.research.benchmark.timing import Result, quartiles
from recipes.research.benchmark.workloads import Spec

SWEPT = ("batch", "tokens", "width")
MIB = 2**20


def machine(device: str) -> dict[str, Any]:
    """Date, device, versions and threads: what a time is worth nothing without."""
    name = torch.cuda.get_device_name() if device == "cuda" else _processor()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


# ---------------------------------------------------------------------------------------------------------------- CSV
def records(results: list[Result], facts: dict[str, Any]) -> list[dict[str, Any]]:
    """One flat record per contestant and point."""
    plain_memory = {_point(r.spec): r.memory for r in results if r.label == PLAIN}
    rows = []
    for r in results:
        low, median, high = quartiles(r.seconds)
        ratio_low, ratio, ratio_high = quartiles(r.relative)
        base = plain_memory.get(_point(r.spec))
        rows.append(
            {
                **{k: v for k, v in asdict(r.spec).items() if k != "compiled"},
                "compiled": r.spec.compiled, "contestant": r.contestant, "rounds": len(r.seconds),
                "seconds": median, "seconds_q1": low, "seconds_q3": high,
                "ratio": ratio, "ratio_q1": ratio_low, "ratio_q3": ratio_high,
                "memory_mib": None if r.memory is None else round(r.memory / MIB, 1),
                "memory_ratio": r.memory / base if r.memory is not None and base else None,
                "gradient_error": r.error, "gram_error": r.gram_error, "skipped": r.skipped, **facts,
            }
        )  # fmt: skip
    return rows


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write records; numbers with six digits, nothing where there is none."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    write_atomically(path, text.getvalue())


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return "" if value is None else value


# ------------------------------------------------------------------------------------------------------------ Markdown
def report(results: list[Result], base: Spec, facts: dict[str, Any]) -> str:
    """Markdown: the base point in full, then each sweep, then what to compare."""
    what = f"{base.layers} layers, width {base.width}, {base.tokens} tokens, B={base.batch}, {base.dtype}"
    lines = [
        f"## A step on the {base.workload} workload",
        "",
        f"{what}; {facts['machine']}, {facts['threads']} threads, torch {facts['torch']}, {facts['date']}.",
        "Medians with quartiles in brackets; ratios are taken round by round to the plain step; memory is the peak of "
        "a step above model and batch; growth is the exponent of the time in B.",
        "",
        *_full(results, base),
    ]
    for axis in SWEPT:
        values = swept(results, base, axis)
        if len(values) > 1:
            lines += ["", *_sweep(results, base, axis, values)]
    found = comparisons(results)
    if found:
        lines += ["", "### Against one another (ratio of times, round by round)", "", *found]
    return "\n".join(lines) + "\n"


def _full(results: list[Result], base: Spec) -> list[str]:
    lines = [
        "| step | seconds | to plain | memory to plain | MiB | growth | error |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    shown = [r for r in results if _point(r.spec) == _point(base)]
    memory = next((r.memory for r in shown if r.label == PLAIN), None)
    exponents = growth(results, base)
    for r in shown:
        if r.skipped:
            lines.append(f"| {r.label} | {_escaped(r.skipped)} | | | | | |")
            continue
        exponent = exponents.get(r.label)
        cells = [
            r.label,
            _median(r.seconds, 3),
            _median(r.relative, 2),
            f"{r.memory / memory:.2f}" if r.memory is not None and memory else "",
            f"{r.memory / MIB:.0f}" if r.memory is not None else "",
            "" if exponent is None else f"{exponent:.2f}",
            "" if r.error is None else f"{max(r.error, r.gram_error or 0):.0e}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _sweep(results: list[Result], base: Spec, axis: str, values: list[int]) -> list[str]:
    lines = [
        f"### By {axis} (ratio to plain; seconds of the plain step)",
        "",
        f"| step | {' | '.join(map(str, values))} |",
        f"|---|{'---:|' * len(values)}",
    ]
    for label in dict.fromkeys(r.label for r in results if r.seconds):
        at = {_point(r.spec): r for r in results if r.label == label and r.seconds}
        found = [at.get(_point(replace(base, **{axis: value}))) for value in values]
        lines.append(f"| {label} | {' | '.join(_swept_cell(r) for r in found)} |")
    return lines


def _swept_cell(result: Result | None) -> str:
    if result is None:
        return "–"
    if result.label == PLAIN:
        return f"{quartiles(result.seconds)[1]:.3f} s"
    return f"{quartiles(result.relative)[1]:.2f}"


def comparisons(results: list[Result]) -> list[str]:
    """The ratios that matter beside those to plain, at every point where both sides were timed."""
    points = dict.fromkeys(_point(r.spec) for r in results)
    lines = []
    for point in points:
        at = {r.label: r for r in results if _point(r.spec) == point and r.seconds}
        vmaps = sorted((label for label in at if label.startswith("vmap")), key=lambda n: quartiles(at[n].seconds)[1])
        pairs = [(CHUNKED, CACHED), *((name, FUSED) for name in (*vmaps[:1], TORCHJD))]
        ratios = [
            f"{a} / {b} {_median([x / y for x, y in zip(at[a].seconds, at[b].seconds, strict=True)], 2)}"
            for a, b in pairs
            if a in at and b in at
        ]
        if ratios:
            spec = next(r.spec for r in results if _point(r.spec) == point)
            lines.append(f"- B={spec.batch}, {spec.tokens} tokens, width {spec.width}: {'; '.join(ratios)}")
    return lines


def growth(results: list[Result], base: Spec) -> dict[str, float]:
    """{label: exponent a of ``seconds ~ B^a``}, least squares on logarithms over the sweep in B."""
    exponents = {}
    for label in dict.fromkeys(r.label for r in results):
        points = [
            (math.log(r.spec.batch), math.log(quartiles(r.seconds)[1]))
            for r in results
            if r.label == label and r.seconds and _point(replace(r.spec, batch=base.batch)) == _point(base)
        ]
        if len(points) > 1:
            x, y = (torch.tensor(column, dtype=torch.float64) for column in zip(*points, strict=True))
            x, y = x - x.mean(), y - y.mean()
            exponents[label] = float((x * y).sum() / x.square().sum())
    return exponents


def swept(results: list[Result], base: Spec, axis: str) -> list[int]:
    """Values of an axis that were measured with everything else as in the base point."""
    values = {
        getattr(r.spec, axis) for r in results if _point(replace(r.spec, **{axis: getattr(base, axis)})) == _point(base)
    }
    return sorted(values)


def _point(spec: Spec) -> Spec:
    """A spec without what tells apart contestants of one point."""
    return replace(spec, compiled=False)


def _median(values: list[float], digits: int) -> str:
    low, middle, high = quartiles(values)
    return "" if math.isnan(middle) else f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
