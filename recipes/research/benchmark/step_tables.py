"""What the step suite writes: a record of every result, a report for people, and what to compare."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from recipes.research.benchmark import machine
from recipes.research.benchmark.contestants import CACHED, CHUNKED, FUSED, PLAIN, TORCHJD
from recipes.research.benchmark.racing import MIB, Timing, quartiles
from recipes.research.benchmark.tables import markdown, median
from recipes.research.benchmark.workloads import Spec

SWEPT = ("batch", "tokens", "width")


@dataclass
class Result(Timing):
    """What was measured of one contestant at one point."""

    spec: Spec
    contestant: str
    error: float | None = None  # relative, of its gradient with weights 1 against the plain one
    gram_error: float | None = None  # relative, of its Gram blocks against the reference engine's
    calls: int | None = None  # of a step, see `counting`

    @property
    def label(self) -> str:
        return self.contestant + (", compiled" if self.spec.compiled else "")


def records(results: list[Result], about: dict[str, Any]) -> list[dict[str, Any]]:
    """One flat record per contestant and point."""
    plain = {r.spec.point: r for r in results if r.label == PLAIN}
    rows = []
    for r in results:
        base = plain.get(r.spec.point, r)
        row = asdict(r.spec) | {"contestant": r.contestant} | r.columns()
        row |= {"memory_ratio": ratio(r.memory, base.memory), "calls": r.calls}
        row |= {"calls_ratio": ratio(r.calls, base.calls), "gradient_error": r.error, "gram_error": r.gram_error}
        rows.append(row | about)
    return rows


def report(results: list[Result], base: Spec, about: dict[str, Any]) -> str:
    """Markdown: the base point in full, then each sweep, then ratios of contestants."""
    size = f"{base.layers} layers, width {base.width}, {base.tokens} tokens, K={base.losses}, B={base.batch}"
    lines = [
        f"## A step on the {base.workload} workload",
        "",
        f"{size}, {base.dtype}; {machine.described(about)}.",
        "Medians with quartiles in brackets; ratios are taken round by round to the plain step; memory is the peak of "
        "a step above model and batch; calls are ops that are no views, on CUDA kernels; growth is the exponent of the "
        "time in B.",
        "",
        *_base_table(results, base),
    ]
    for axis in SWEPT:
        values = swept(results, base, axis)
        if len(values) > 1:
            lines += ["", *_sweep_table(results, base, axis, values)]
    ratios = comparisons(results)
    if ratios:
        lines += ["", "### Against one another (ratio of times, round by round)", "", *ratios]
    return "\n".join(lines) + "\n"


def _base_table(results: list[Result], base: Spec) -> list[str]:
    shown = [r for r in results if r.spec.point == base]
    plain = next(r for r in shown if r.label == PLAIN)
    exponents = growth(results, base)
    rows = []
    for r in shown:
        if r.skipped:
            rows.append([r.label, r.skipped])
            continue
        exponent = exponents.get(r.label)
        rows.append(
            [
                r.label,
                median(r.seconds, 3),
                median(r.ratios, 2),
                shown_ratio(r.memory, plain.memory),
                f"{r.memory / MIB:.0f}" if r.memory is not None else "",
                shown_ratio(r.calls, plain.calls),
                "" if exponent is None else f"{exponent:.2f}",
                "" if r.error is None else f"{max(r.error, r.gram_error or 0):.0e}",
            ]
        )
    head = ["step", "seconds", "to plain", "memory to plain", "MiB", "calls to plain", "growth", "error"]
    return markdown(head, rows)


def ratio(number: int | None, base: int | None) -> float | None:
    """One count over another; None where one of them was not taken."""
    return number / base if number is not None and base else None


def shown_ratio(number: int | None, base: int | None) -> str:
    """`ratio` as tables have it."""
    quotient = ratio(number, base)
    return "" if quotient is None else f"{quotient:.2f}"


def _sweep_table(results: list[Result], base: Spec, axis: str, values: list[int]) -> list[str]:
    rows = []
    for label in dict.fromkeys(r.label for r in results if r.seconds):
        at = {getattr(r.spec, axis): r for r in along(results, base, axis) if r.label == label and r.seconds}
        rows.append([label, *(_sweep_cell(at.get(value)) for value in values)])
    head = f"### By {axis} (ratio to plain; seconds of the plain step)"
    return [head, "", *markdown(["step", *map(str, values)], rows)]


def _sweep_cell(result: Result | None) -> str:
    if result is None:
        return "–"
    if result.label == PLAIN:
        return f"{quartiles(result.seconds)[1]:.3f} s"
    return f"{quartiles(result.ratios)[1]:.2f}"


def comparisons(results: list[Result]) -> list[str]:
    """The ratios that matter beside those to plain, at every point where both sides were timed."""
    lines = []
    for point in dict.fromkeys(r.spec.point for r in results):
        at = {r.label: r.seconds for r in results if r.spec.point == point and r.seconds}
        vmaps = [label for label in at if label.startswith("vmap")]
        best = [min(vmaps, key=lambda label: quartiles(at[label])[1])] if vmaps else []
        pairs = [(CHUNKED, CACHED), *((name, FUSED) for name in (*best, TORCHJD))]
        ratios = [f"{a} / {b} {_ratio(at[a], at[b])}" for a, b in pairs if a in at and b in at]
        if ratios:
            lines.append(f"- B={point.batch}, {point.tokens} tokens, width {point.width}: {'; '.join(ratios)}")
    return lines


def _ratio(seconds: Sequence[float], base: Sequence[float]) -> str:
    return median([a / b for a, b in zip(seconds, base, strict=True)], 2)


def growth(results: list[Result], base: Spec) -> dict[str, float]:
    """{label: exponent a of ``seconds ~ B^a``}, least squares on logarithms over the sweep in B."""
    exponents = {}
    for label in dict.fromkeys(r.label for r in results):
        timed = [r for r in along(results, base, "batch") if r.label == label and r.seconds]
        if len(timed) > 1:
            batches = [math.log(r.spec.batch) for r in timed]
            seconds = [math.log(quartiles(r.seconds)[1]) for r in timed]
            exponents[label] = statistics.linear_regression(batches, seconds).slope
    return exponents


def along(results: list[Result], base: Spec, axis: str) -> list[Result]:
    """Results at the points that differ from the base in one axis alone."""
    return [r for r in results if replace(r.spec.point, **{axis: getattr(base, axis)}) == base]


def swept(results: list[Result], base: Spec, axis: str) -> list[int]:
    """Values of an axis that were measured with everything else as in the base point."""
    return sorted({getattr(r.spec, axis) for r in along(results, base, axis)})
