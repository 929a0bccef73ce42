"""One plot for each question of the study."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recipes.figures.style import figure, save_png
from recipes.research.study.config import StudyConfig
from recipes.research.study.summary import AIM, TEXT, Results, metric_of

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
Band = dict[float, list[float]]  # a value for each seed, by x


def draw(study: StudyConfig, results: Results, out: Path) -> list[Path]:
    """Draw the plots whose cells have run; returns the files."""
    plots = {
        "rules.png": (["center"], lambda: gains(study, results, "center")),
        "kinds.png": (["center", "clean"], lambda: kinds(study, results)),
        "share.png": (list(SHARES), lambda: factor(results, SHARES, "share of wrong texts")),
        "clips.png": (list(CLIPS), lambda: factor(results, CLIPS, "training clips")),
        "training.png": (["center", "media"], lambda: training(results, ["center", "media"])),
    }
    files = []
    for name, (cells, plot) in plots.items():
        if all(results.rules(cell, ["baseline"]) for cell in cells):
            files.append(save_png(plot(), out / name))
    return files


def gains(study: StudyConfig, results: Results, cell: str) -> Figure:
    """The gain of each rule over the baseline with its interval, in order, and its cost beside it."""
    rules = [rule for rule in results.rules(cell, study.cells[cell].rules) if rule != "baseline"]
    comparisons = {rule: results.compare(cell, rule, TEXT) for rule in rules}
    rules.sort(key=lambda rule: comparisons[rule].difference)
    drawn = figure(8.5, 0.27 * len(rules) + 1.2)
    gain, cost = drawn.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    for y, rule in enumerate(rules):
        comparison, colour = comparisons[rule], COLOURS.get(rule, GREY)
        gain.plot([100 * comparison.low, 100 * comparison.high], [y, y], color=colour, lw=1.6)
        gain.plot(100 * comparison.difference, y, "o", color=colour, ms=5)
        cost.barh(y, results.cost(cell, rule), color=colour, height=0.6)
    gain.set_yticks(range(len(rules)), rules, fontsize=8)
    gain.set_xlabel(f"gain in {TEXT} over the baseline, points (95% intervals)")
    cost.set_xlabel("cost (baseline: 1)")
    gain.axvline(0, color=COLOURS["baseline"], lw=0.8)
    cost.axvline(1, color=COLOURS["baseline"], lw=0.8)
    gain.grid(axis="x", lw=0.3)
    return drawn


def kinds(study: StudyConfig, results: Results) -> Figure:
    """What rules recover of the distance from baseline to oracle, for every kind of noise."""
    needed = ["baseline", "oracle", "cross_check"]
    cells = [name for name, cell in study.cells.items() if cell.share and results.rules(name, needed) == needed]
    rules = [rule for rule in study.cells["clean"].rules if rule not in ("baseline", "oracle")]
    drawn = figure(8.5, 4)
    axes = drawn.subplots()
    width = 0.8 / len(rules)
    for k, rule in enumerate(rules):
        bars = {
            x + (k - (len(rules) - 1) / 2) * width: results.compare(cell, rule, metric_of(study.cells[cell].kind))
            for x, cell in enumerate(cells)
            if results.rules(cell, [rule])
        }
        heights = [100 * comparison.recovered for comparison in bars.values()]
        axes.bar(list(bars), heights, width, label=rule, color=COLOURS.get(rule, GREY))
    axes.axhline(0, color=COLOURS["baseline"], lw=0.8)
    axes.axhline(100 * AIM, color=COLOURS["oracle"], lw=0.8, ls="--")
    axes.set_xticks(range(len(cells)), cells, rotation=20, ha="right", fontsize=8)
    axes.set(ylabel="of the way from baseline to oracle, %", ylim=(-50, 110))
    axes.legend(fontsize=8, ncols=len(rules), loc="upper center", bbox_to_anchor=(0.5, 1.12))
    return drawn


def factor(results: Results, cells: dict[str, float], label: str) -> Figure:
    """Retrieval by rule along one factor: {cell: value of the factor}."""
    drawn = figure(5.5, 3.6)
    bands = {
        rule: {x: list(results.values(cell, rule, TEXT).values()) for cell, x in cells.items()} for rule in COLOURS
    }
    _draw_bands(drawn.subplots(), bands, label)
    return drawn


def training(results: Results, cells: list[str]) -> Figure:
    drawn = figure(4.6 * len(cells), 3.8)
    for axes, cell in zip(drawn.subplots(1, len(cells), squeeze=False)[0], cells, strict=True):
        bands: dict[str, Band] = {rule: {} for rule in results.rules(cell, list(COLOURS))}
        for rule, band in bands.items():
            for curve in results.curve(cell, rule, TEXT).values():
                for step, value in curve.items():
                    band.setdefault(step, []).append(value)
        _draw_bands(axes, bands, "steps")
        axes.set_title(cell)
    return drawn


def _draw_bands(axes: Axes, bands: dict[str, Band], label: str) -> None:
    """For each rule that has run at every x, the mean over the seeds and the range from lowest to highest."""
    for rule, band in bands.items():
        if all(band.values()):
            low, mean, high = (100 * np.array([f(values) for values in band.values()]) for f in (min, np.mean, max))
            axes.plot(list(band), mean, color=COLOURS[rule], label=rule, lw=1.6, marker=".", ms=4)
            axes.fill_between(list(band), low, high, color=COLOURS[rule], alpha=0.12, lw=0)
    axes.set(xlabel=label, ylabel=f"{TEXT}, %")
    axes.set_ylim(bottom=0)
    axes.grid(lw=0.3)
    axes.legend(fontsize=7)
