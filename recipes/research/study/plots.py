"""One plot for each question of the study."""

from collections.abc import Callable, Mapping, Sequence
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
        "rules.png": ({"center"}, lambda: gains(results, "center", study.cells["center"].rules)),
        "kinds.png": ({"center", "clean"}, lambda: kinds(study, results)),
        "share.png": (set(SHARES), lambda: factor(results, SHARES, "share of wrong texts")),
        "clips.png": (set(CLIPS), lambda: factor(results, CLIPS, "training clips")),
        "training.png": ({"center", "media"}, lambda: training(results, ["center", "media"])),
        "cost.png": ({"center"}, lambda: costs(results, "center", study.cells["center"].rules)),
    }
    complete = {name for name in study.cells if results.rules(name, ["baseline"])}
    files = []
    for name, (cells, plot) in plots.items():
        if cells <= complete:
            plot().savefig(out / name, dpi=DPI)
            files.append(out / name)
    return files


def gains(results: Results, cell: str, rules: list[str]) -> Figure:
    """The gain of each rule over the baseline, with its interval, in order."""
    names = [rule for rule in results.rules(cell, rules) if rule != "baseline"]
    comparisons = {rule: results.compare(cell, rule, TEXT) for rule in names}
    names.sort(key=lambda rule: comparisons[rule].difference)
    figure, axes = _figure(7, 0.27 * len(names) + 1.2)
    for y, rule in enumerate(names):
        comparison, colour = comparisons[rule], COLOURS.get(rule, GREY)
        axes.plot([100 * comparison.low, 100 * comparison.high], [y, y], color=colour, lw=1.6)
        axes.plot(100 * comparison.difference, y, "o", color=colour, ms=5)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.axvline(0, color=COLOURS["baseline"], lw=0.8)
    seeds = max((c.seeds for c in comparisons.values()), default=0)
    axes.set_xlabel(f"{TEXT} over the baseline, points; mean and 95% interval of {seeds} paired seeds")
    axes.grid(axis="x", lw=0.3)
    return figure


def kinds(study: StudyConfig, results: Results) -> Figure:
    """What rules recover of the distance from baseline to oracle, for every kind of noise."""
    needed = ["baseline", "oracle", "cross_check"]
    cells = [name for name, cell in study.cells.items() if cell.share and results.rules(name, needed) == needed]
    rules = [rule for rule in study.cells["clean"].rules if rule not in ("baseline", "oracle")]
    figure, axes = _figure(8.5, 4)
    width = 0.8 / len(rules)
    for k, rule in enumerate(rules):
        recovered = {
            x: 100 * results.compare(cell, rule, metric_of(study.cells[cell].kind)).recovered
            for x, cell in enumerate(cells)
            if results.rules(cell, [rule])
        }
        places = np.array(list(recovered)) + (k - (len(rules) - 1) / 2) * width
        axes.bar(places, list(recovered.values()), width, label=rule, color=COLOURS.get(rule, GREY))
    axes.axhline(0, color=COLOURS["baseline"], lw=0.8)
    axes.axhline(100 * AIM, color=COLOURS["oracle"], lw=0.8, ls="--")
    axes.set_xticks(range(len(cells)), cells, rotation=20, ha="right", fontsize=8)
    axes.set_ylabel("of the way from baseline to oracle, %")
    axes.set_ylim(-50, 110)
    axes.legend(fontsize=8, frameon=False, ncols=len(rules), loc="upper center", bbox_to_anchor=(0.5, 1.12))
    return figure


def factor(results: Results, cells: Mapping[str, float], label: str) -> Figure:
    """Retrieval by rule along one factor: {cell: value of the factor}."""
    figure, axes = _figure(5.5, 3.6)
    for rule in COLOURS:
        groups = [list(results.values(cell, rule, TEXT).values()) for cell in cells]
        if all(groups):
            _band(axes, list(cells.values()), groups, rule)
    axes.set(xlabel=label, xticks=list(cells.values()))
    _finish(axes)
    return figure


def training(results: Results, cells: list[str]) -> Figure:
    """Retrieval during training."""
    figure = Figure(figsize=(4.6 * len(cells), 3.8), layout="constrained")
    for axes, cell in zip(figure.subplots(1, len(cells), squeeze=False)[0], cells, strict=True):
        for rule in COLOURS:
            curves = list(results.curve(cell, rule, TEXT).values())
            if curves:
                _band(axes, list(curves[0]), [[curve[step] for curve in curves] for step in curves[0]], rule)
        axes.set(xlabel="steps", title=cell)
        _finish(axes)
    return figure


def costs(results: Results, cell: str, rules: list[str]) -> Figure:
    """The cost of each rule against its retrieval."""
    figure, axes = _figure(7, 4)
    for rule in results.rules(cell, rules):
        x, y = results.cost(cell, rule), 100 * results.compare(cell, rule, TEXT).mean
        axes.plot(x, y, "o", color=COLOURS.get(rule, GREY), ms=5)
        axes.annotate(rule, (x, y), xytext=(4, 2), textcoords="offset points", fontsize=6.5)
    axes.set(xlabel="CPU time of training over the baseline's", ylabel=f"{TEXT}, %")
    axes.grid(lw=0.3)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _band(axes: Axes, x: Sequence[float], groups: Sequence[Sequence[float]], rule: str) -> None:
    """The mean over the seeds, and the range from the lowest to the highest seed."""
    low, mean, high = (100 * np.array([statistic(group) for group in groups]) for statistic in (min, np.mean, max))
    axes.plot(x, mean, color=COLOURS[rule], label=rule, lw=1.6, marker=".", ms=4)
    axes.fill_between(x, low, high, color=COLOURS[rule], alpha=0.12, lw=0)


def _finish(axes: Axes) -> None:
    axes.set_ylabel(f"{TEXT}, %")
    axes.set_ylim(bottom=0)
    axes.grid(lw=0.3)
    axes.legend(fontsize=7, frameon=False)
