"""The cost of a step against the batch, the width and the tokens, as one PNG."""

from dataclasses import replace
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from recipes.research.benchmark.contestants import FUSED, PLAIN
from recipes.research.benchmark.tables import SWEPT, swept
from recipes.research.benchmark.timing import Result, quartiles
from recipes.research.benchmark.workloads import Spec

matplotlib.use("Agg")
NAMES = {"batch": "samples B", "width": "width", "tokens": "tokens"}


def save(path: Path, results: list[Result], base: Spec) -> None:
    """Draw a row per swept axis: ratio to the plain step, and seconds. One value alone is drawn as points."""
    axes_names = [axis for axis in SWEPT if len(swept(results, base, axis)) > 1] or ["batch"]
    labels = list(dict.fromkeys(r.label for r in results if r.seconds))
    figure = Figure(figsize=(10.5, 3.6 * len(axes_names) + 0.4), layout="constrained")
    rows = figure.subplots(len(axes_names), 2, squeeze=False)
    styles = {label: _style(label, number) for number, label in enumerate(labels)}
    for axis, (ratio, seconds) in zip(axes_names, rows, strict=True):
        for label in labels:
            found = sorted(
                (getattr(r.spec, axis), quartiles(r.relative), quartiles(r.seconds))
                for r in results
                if r.label == label and r.seconds
                and replace(r.spec, compiled=False, **{axis: getattr(base, axis)}) == base
            )  # fmt: skip
            if not found:
                continue
            x = [value for value, _, _ in found]
            for panel, column in ((ratio, 1), (seconds, 2)):
                low, middle, high = zip(*(point[column] for point in found), strict=True)
                panel.plot(x, middle, **styles[label])
                panel.fill_between(x, low, high, color=styles[label]["color"], alpha=0.15, lw=0)
        for panel, title in ((ratio, "ratio to the plain step"), (seconds, "seconds")):
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            ticks = swept(results, base, axis)
            panel.set_xticks(ticks, [str(t) for t in ticks])
            panel.minorticks_off()
            panel.set(xlabel=NAMES[axis], ylabel=title)
            panel.grid(alpha=0.3)
        low, high = ratio.get_ylim()
        marks = [m for m in (0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32) if low <= m <= high]
        ratio.set_yticks(marks, [f"{m:g}" for m in marks])
    handles = [Line2D([], [], label=label, **styles[label]) for label in labels]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize="small")
    figure.suptitle(f"Cost of a step, {base.workload} workload, {base.dtype}")
    figure.savefig(path, dpi=150)


def _style(label: str, number: int) -> dict[str, object]:
    colour = matplotlib.colormaps["tab20"](number % 20)
    emphasis = {PLAIN: 2.6, FUSED: 2.6}.get(label, 1.3)
    return {
        "color": "black" if label == PLAIN else colour,
        "lw": emphasis,
        "marker": "o",
        "ms": 4,
        "ls": ":" if label.endswith("compiled") else "-",
    }
