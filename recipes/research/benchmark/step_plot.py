"""The cost of a step against the batch, the width and the tokens, as one PNG."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from recipes.figures.style import figure, save_png
from recipes.research.benchmark.contestants import FUSED, PLAIN
from recipes.research.benchmark.racing import quartiles
from recipes.research.benchmark.step_tables import SWEPT, Result, along, swept
from recipes.research.benchmark.workloads import Spec

NAMES = {"batch": "samples B", "width": "width", "tokens": "tokens"}
RATIOS = (0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)


def save(path: Path, results: list[Result], base: Spec) -> Path:
    """Draw a row per swept axis: ratio to the plain step, and seconds. A single value is drawn as points."""
    axes = [axis for axis in SWEPT if len(swept(results, base, axis)) > 1] or ["batch"]
    labels = list(dict.fromkeys(r.label for r in results if r.seconds))
    styles = {label: _style(label, number) for number, label in enumerate(labels)}
    drawn = figure(10.5, 3.6 * len(axes) + 0.4)
    for axis, (ratio, seconds) in zip(axes, drawn.subplots(len(axes), 2, squeeze=False), strict=True):
        shown = [r for r in along(results, base, axis) if r.seconds]
        _draw(ratio, {(r.label, getattr(r.spec, axis)): r.ratios for r in shown}, styles)
        _draw(seconds, {(r.label, getattr(r.spec, axis)): r.seconds for r in shown}, styles)
        ticks = swept(results, base, axis)
        for panel, title in ((ratio, "ratio to the plain step"), (seconds, "seconds")):
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_xticks(ticks, [str(t) for t in ticks])
            panel.xaxis.minorticks_off()
            panel.set(xlabel=NAMES[axis], ylabel=title)
            panel.grid(alpha=0.3)
        low, high = ratio.get_ylim()
        marks = [m for m in RATIOS if low <= m <= high]
        ratio.yaxis.minorticks_off()
        ratio.set_yticks(marks, [f"{m:g}" for m in marks])
    handles = [Line2D([], [], label=label, **styles[label]) for label in labels]
    drawn.legend(handles=handles, loc="outside right upper", fontsize="small")
    drawn.suptitle(f"Cost of a step, {base.workload} workload, {base.dtype}")
    return save_png(drawn, path)


def _draw(panel: Axes, values: dict[tuple[str, int], list[float]], styles: dict[str, dict[str, Any]]) -> None:
    """A line for each label through its medians, and a band between its quartiles."""
    for label, style in styles.items():
        points = sorted((x, *quartiles(seconds)) for (name, x), seconds in values.items() if name == label)
        if points:
            x, low, middle, high = zip(*points, strict=True)
            panel.plot(x, middle, **style)
            panel.fill_between(x, low, high, color=style["color"], alpha=0.15, lw=0)


def _style(label: str, number: int) -> dict[str, Any]:
    return {
        "color": "black" if label == PLAIN else matplotlib.colormaps["tab20"](number % 20),
        "lw": 2.6 if label in (PLAIN, FUSED) else 1.3,
        "marker": "o",
        "ms": 4,
        "ls": ":" if label.endswith("compiled") else "-",
    }
