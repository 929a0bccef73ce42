"""One plot for each question of the study."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recipes.research.study.config import StudyConfig
from recipes.research.study.summary import AIM, TEXT, Results, metric_of

DPI = 150
GREY = "#444444"
COLOURS = {
    "baseline": "#777777",
    "oracle": "#222222",
    "cross_check": "#c4420b",
    "small loss half": "#1668b0",
    "mixture": "#3b9157",
    "realign + curriculum": "#8a4fb0",
    "realign": "#b07ad0",
    "curriculum": "#d0a52c",
}
SHARES = {"clean": 0.0, "share 0.3": 0.3, "center": 0.6}
CLIPS = {"512 clips": 512, "center": 1024, "2048 clips": 2048}


def draw(study: StudyConfig, results: Results, out: Path) -> list[Path]:
    """Draw the plots whose cells have run.

    Returns:
        The files.
    """
    plots: dict[str, tuple[set[str], Callable[[], Figure]]] = {
        "rules.png": ({"center"}, lambda: gains(study, results, "center")),
        "kinds.png": ({"center", "clean"}, lambda: kinds(study, results)),
        "share.png": (set(SHARES), lambda: factor(results, SHARES, "share of wrong texts")),
        "clips.png": (set(CLIPS), lambda: factor(results, CLIPS, "training clips")),
        "training.png": ({"center", "media"}, lambda: training(results, ["center", "media"])),
        "cost.png": ({"center"}, lambda: costs(study, results, "center")),
    }
    complete = {name for name in study.cells if results.rules(name, ["baseline"])}
    files = []
    for name, (cells, plot) in plots.items():
        if cells <= complete:
            plot().savefig(out / name, dpi=DPI)
            files.append(out / name)
    return files


def gains(study: StudyConfig, results: Results, cell: str) -> Figure:
    """The gain of each rule over the baseline, with its interval, in order."""
    rules = [rule for rule in results.rules(cell, study.cells[cell].rules) if rule != "baseline"]
    comparisons = {rule: results.compare(cell, rule, TEXT) for rule in rules}
    rules.sort(key=lambda rule: comparisons[rule].difference)
    figure, axes = _figure(7, 0.27 * len(rules) + 1.2)
    for y, rule in enumerate(rules):
        comparison, colour = comparisons[rule], COLOURS.get(rule, GREY)
        axes.plot([100 * comparison.low, 100 * comparison.high], [y, y], color=colour, lw=1.6)
        axes.plot(100 * comparison.difference, y, "o", color=colour, ms=5)
    axes.set_yticks(range(len(rules)), rules, fontsize=8)
    axes.axvline(0, color=COLOURS["baseline"], lw=0.8)
    axes.set_xlabel(f"{TEXT} over the baseline, points; mean and 95% interval over paired seeds")
    axes.grid(axis="x", lw=0.3)
    return figure


def kinds(study: StudyConfig, results: Results) -> Figure:
    """What rules recover of the distance from baseline to oracle, for every kind of noise."""
    needed = ["baseline", "oracle", "cross_check"]
    cells = [name for name, cell in study.cells.items() if cell.share and results.rules(name, needed) == needed]
    rules = [rule for rule in study.cells["clean"].rules if rule not in needed[:2]]
    figure, axes = _figure(8.5, 4)
    width = 0.8 / len(rules)
    for k, rule in enumerate(rules):
        recovered = {
            x + (k - (len(rules) - 1) / 2) * width: 100
            * results.compare(c, rule, metric_of(study.cells[c].kind)).recovered
            for x, c in enumerate(cells)
            if results.rules(c, [rule])
        }
        axes.bar(list(recovered), list(recovered.values()), width, label=rule, color=COLOURS.get(rule, GREY))
    axes.axhline(0, color=COLOURS["baseline"], lw=0.8)
    axes.axhline(100 * AIM, color=COLOURS["oracle"], lw=0.8, ls="--")
    axes.set_xticks(range(len(cells)), cells, rotation=20, ha="right", fontsize=8)
    axes.set(ylabel="of the way from baseline to oracle, %", ylim=(-50, 110))
    axes.legend(fontsize=8, frameon=False, ncols=len(rules), loc="upper center", bbox_to_anchor=(0.5, 1.12))
    return figure


def factor(results: Results, cells: dict[str, float], label: str) -> Figure:
    """Retrieval by rule along one factor: {cell: value of the factor}."""
    figure, axes = _figure(5.5, 3.6)
    for rule in COLOURS:
        values = {x: list(results.values(cell, rule, TEXT).values()) for cell, x in cells.items()}
        if all(values.values()):
            _band(axes, values, rule)
    _finish(axes, xlabel=label, xticks=list(cells.values()))
    return figure


def training(results: Results, cells: list[str]) -> Figure:
    """Retrieval during training."""
    figure = Figure(figsize=(4.6 * len(cells), 3.8), layout="constrained")
    for axes, cell in zip(figure.subplots(1, len(cells), squeeze=False)[0], cells, strict=True):
        for rule in COLOURS:
            curves = list(results.curve(cell, rule, TEXT).values())
            if curves:
                _band(axes, {step: [curve[step] for curve in curves] for step in curves[0]}, rule)
        _finish(axes, xlabel="steps", title=cell)
    return figure


def costs(study: StudyConfig, results: Results, cell: str) -> Figure:
    """The cost of each rule against its retrieval."""
    figure, axes = _figure(7, 4)
    for rule in results.rules(cell, study.cells[cell].rules):
        x, y = results.cost(cell, rule), 100 * results.compare(cell, rule, TEXT).mean
        axes.plot(x, y, "o", color=COLOURS.get(rule, GREY), ms=5)
        axes.annotate(rule, (x, y), xytext=(4, 2), textcoords="offset points", fontsize=6.5)
    axes.set(xlabel="CPU time of training over the baseline's", ylabel=f"{TEXT}, %")
    axes.grid(lw=0.3)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _band(axes: Axes, values: dict[float, list[float]], rule: str) -> None:
    """The mean over the seeds, and the range from the lowest to the highest: {x: a value per seed}."""
    low, mean, high = (100 * np.array([of(v) for v in values.values()]) for of in (min, np.mean, max))
    axes.plot(list(values), mean, color=COLOURS[rule], label=rule, lw=1.6, marker=".", ms=4)
    axes.fill_between(list(values), low, high, color=COLOURS[rule], alpha=0.12, lw=0)


def _finish(axes: Axes, **labels: str | Iterable[float]) -> None:
    axes.set(ylabel=f"{TEXT}, %", **labels)
    axes.set_ylim(bottom=0)
    axes.grid(lw=0.3)
    axes.legend(fontsize=7, frameon=False)
