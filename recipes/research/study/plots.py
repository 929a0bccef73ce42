"""The study's questions, a plot each."""

from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recipes.research.study.config import StudyConfig
from recipes.research.study.summary import AIM, TEXT, Lines, compare, cost, metric_of, rules_there
from recipes.research.study.table import values

matplotlib.use("Agg")

DPI = 150
COLOURS = {
    "baseline": "#777777", "oracle": "#222222", "cross_check": "#c4420b", "small loss half": "#1668b0",
    "mixture": "#3b9157", "realign + curriculum": "#8a4fb0", "realign": "#b07ad0", "curriculum": "#d0a52c",
}  # fmt: skip


def draw(study: StudyConfig, runs: Lines, curves: Lines, out: Path) -> list[Path]:
    """Draw every plot whose cells have run.

    Returns:
        The files.
    """
    there = study.cells.keys() & {line["cell"] for line in runs}
    plots: dict[str, tuple[set[str], Callable[[], Figure]]] = {
        "rules.png": ({"center"}, lambda: rules(study, runs, "center")),
        "kinds.png": ({"center", "clean"}, lambda: kinds(study, runs)),
        "share.png": (
            {"clean", "share 0.3", "center"},
            lambda: lines(runs, {"clean": 0.0, "share 0.3": 0.3, "center": 0.6}, "share of wrong texts"),
        ),
        "clips.png": (
            {"512 clips", "center", "2048 clips"},
            lambda: lines(runs, {"512 clips": 512, "center": 1024, "2048 clips": 2048}, "training clips"),
        ),
        "training.png": ({"center", "media"}, lambda: training(curves, ["center", "media"])),
        "cost.png": ({"center"}, lambda: costs(runs, "center")),
    }
    written = []
    for name, (needed, plot) in plots.items():
        if needed <= there:
            plot().savefig(out / name, dpi=DPI)
            written.append(out / name)
    return written


def rules(study: StudyConfig, runs: Lines, cell: str) -> Figure:
    """What each rule gains over the baseline, with intervals, in order."""
    found = {
        rule: compare(runs, cell, rule, TEXT)
        for rule in rules_there(runs, cell, study.cells[cell].rules)
        if rule != "baseline"
    }
    order = sorted(found, key=lambda rule: found[rule].difference)
    figure = Figure(figsize=(7, 0.27 * len(order) + 1.2), layout="constrained")
    axes = figure.subplots()
    for place, rule in enumerate(order):
        x = found[rule]
        colour = COLOURS.get(rule, "#444444")
        axes.plot([100 * x.low, 100 * x.high], [place, place], color=colour, lw=1.6)
        axes.plot(100 * x.difference, place, "o", color=colour, ms=5)
    axes.set_yticks(range(len(order)), order, fontsize=8)
    axes.axvline(0, color=COLOURS["baseline"], lw=0.8)
    axes.set_xlabel(f"{TEXT} over the baseline, points; mean and 95% of {found[order[0]].seeds} paired seeds")
    axes.grid(axis="x", lw=0.3)
    return figure


def kinds(study: StudyConfig, runs: Lines) -> Figure:
    """The part of the distance from baseline to oracle that rules win back, for every kind of noise."""
    cells = [
        name
        for name, cell in study.cells.items()
        if cell.share and {"baseline", "oracle", "cross_check"} <= set(rules_there(runs, name, cell.rules))
    ]
    names = [rule for rule in study.cells["clean"].rules if rule not in ("baseline", "oracle")]
    figure = Figure(figsize=(8.5, 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(names)
    for k, rule in enumerate(names):
        heights = [
            100 * compare(runs, cell, rule, metric_of(study.cells[cell].kind)).recovered
            if rule in rules_there(runs, cell, study.cells[cell].rules)
            else np.nan
            for cell in cells
        ]
        axes.bar(np.arange(len(cells)) + (k - (len(names) - 1) / 2) * width, heights, width, label=rule,
                 color=COLOURS[rule])  # fmt: skip
    axes.axhline(0, color=COLOURS["baseline"], lw=0.8)
    axes.axhline(100 * AIM, color=COLOURS["oracle"], lw=0.8, ls="--")
    axes.set_xticks(range(len(cells)), cells, rotation=20, ha="right", fontsize=8)
    axes.set_ylabel("of the way from baseline to oracle, %")
    axes.set_ylim(-50, 110)
    axes.legend(fontsize=8, frameon=False, ncols=len(names), loc="upper center", bbox_to_anchor=(0.5, 1.12))
    return figure


def lines(runs: Lines, cells: dict[str, float], label: str) -> Figure:
    """Retrieval by rule along one factor: {cell: its value}."""
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes = figure.subplots()
    for rule, colour in COLOURS.items():
        found = {x: list(values(runs, cell, rule, TEXT).values()) for cell, x in cells.items()}
        if all(found.values()):
            _band(axes, list(found), [np.array(v) for v in found.values()], rule, colour)
    axes.set(xlabel=label, ylabel=f"{TEXT}, %", xticks=list(cells.values()))
    _finish(axes)
    return figure


def training(curves: Lines, cells: list[str]) -> Figure:
    """Retrieval over the steps."""
    figure = Figure(figsize=(4.6 * len(cells), 3.8), layout="constrained")
    for axes, cell in zip(np.atleast_1d(figure.subplots(1, len(cells))), cells, strict=True):
        for rule, colour in COLOURS.items():
            points = [p for p in curves if p["cell"] == cell and p["rule"] == rule]
            steps = sorted({int(p["step"]) for p in points})
            at = [np.array([float(p[TEXT]) for p in points if int(p["step"]) == s]) for s in steps]
            if steps:
                _band(axes, steps, at, rule, colour)
        axes.set(xlabel="steps", ylabel=f"{TEXT}, %", title=cell)
        _finish(axes)
    return figure


def costs(runs: Lines, cell: str) -> Figure:
    """What a rule costs against what it gains."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for rule in rules_there(runs, cell, list(dict.fromkeys(line["rule"] for line in runs))):
        x, y = cost(runs, cell, rule), 100 * compare(runs, cell, rule, TEXT).mean
        axes.plot(x, y, "o", color=COLOURS.get(rule, "#444444"), ms=5)
        axes.annotate(rule, (x, y), xytext=(4, 2), textcoords="offset points", fontsize=6.5)
    axes.set(xlabel="CPU time of training over the baseline's", ylabel=f"{TEXT}, %")
    axes.grid(lw=0.3)
    return figure


def _band(axes: Axes, x: list, groups: list[np.ndarray], label: str, colour: str) -> None:
    """Means, and from the least to the largest seed."""
    axes.plot(x, [100 * g.mean() for g in groups], color=colour, label=label, lw=1.6, marker=".", ms=4)
    axes.fill_between(
        x, [100 * g.min() for g in groups], [100 * g.max() for g in groups], color=colour, alpha=0.12, lw=0
    )


def _finish(axes: Axes) -> None:
    axes.set_ylim(bottom=0)
    axes.grid(lw=0.3)
    axes.legend(fontsize=7, frameon=False)
