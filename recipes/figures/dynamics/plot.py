"""The distribution of the cosines of runs over their steps, as pictures: figure 3 of the paper's supplement."""

import string
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from recipes.figures.dynamics.numbers import EDGES, MIDDLES, Curves, curves, distribution, extent
from recipes.figures.dynamics.runs import Run
from recipes.figures.dynamics.text import BEFORE
from recipes.figures.style import BLUE, INK, ORANGE, PALE, figure
from recipes.training.probes import FAMILIES

STYLES = (":", "--", "-", "--", ":")  # of the quantiles
MEAN = {"color": ORANGE, "lw": 1.6}
NEGATIVE = {"color": BLUE, "lw": 1.4}
NORMAL = {"color": ORANGE, "lw": 1.2, "ls": (0, (4, 2))}
QUANTILE = {"color": INK, "lw": 0.9}
ZERO = {"color": "grey", "lw": 0.6}
COSINE = r"$\cos(g_{va},\, g_{vt})$"


def draw(runs: list[Run], name: str) -> Figure:
    """One panel for each run: density over iterations with mean and quantiles, share of negatives, overall density."""
    every = [curves(run, name) for run in runs]
    reach = extent([c.density for c in every])
    darkest = max(float(np.quantile(c.coarse, 0.995)) for c in every)  # few places are denser
    last = max(float(c.edges[-1]) for c in every)
    drawn = figure(3.3 * len(runs) + 0.9, 6.6)
    rows = drawn.subplots(3, len(runs), squeeze=False, sharey="row", height_ratios=[3, 1.25, 1.5])
    for letter, run, c, (heat, shares, overall) in zip(string.ascii_lowercase * 9, runs, every, rows.T, strict=False):
        heat.set_title(f"({letter}) {run.mode}\n", fontsize=10.5, fontweight="bold")
        heat.text(0.5, 1.015, f"run {run.name}", transform=heat.transAxes, ha="center", va="bottom", fontsize=8)
        mesh = _heat_map(heat, c, darkest)
        _over_steps(shares, c, c.negative, **NEGATIVE)
        shares.axhline(0.5, **ZERO)
        shares.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        shares.set_xlabel("iteration")
        for axes in (heat, shares):
            axes.set_xlim(0, last)
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, prune="upper"))
        heat.tick_params(labelbottom=False)
        _overall(overall, run, name, reach)
    rows[0, 0].set(ylabel=COSINE, ylim=(-reach, reach))
    rows[1, 0].set(ylabel="negative", ylim=_around_half([c.negative for c in every]))
    rows[2, 0].set_ylabel("density")
    drawn.colorbar(mesh, ax=rows[0].tolist(), label="density at an iteration", pad=0.01, aspect=30)
    drawn.suptitle(f"Agreement of gradients over {runs[0].over(name)}", fontsize=11.5)
    legend = {"loc": "outside lower center", "ncols": 6, "fontsize": 8, "title": BEFORE, "title_fontsize": 9}
    drawn.legend(handles=_legend(), **legend)
    return drawn


def draw_probes(runs: list[Run]) -> Figure | None:
    """Mean and share of negatives over iterations for every part that was probed; None where no run has probes."""
    probed = [run for run in runs if run.probes]
    if not probed:
        return None
    families = [family for family in FAMILIES if any(family in run.probes for run in probed)]
    last = max(interval.last for run in probed for interval in run.dynamics.intervals)
    drawn = figure(max(3.1 * len(families) + 0.6, 5.5), 4.6 * len(probed) + 0.4)
    for panel, run in zip(drawn.subfigures(len(probed), 1, squeeze=False).flat, probed, strict=True):
        _probe_panel(panel, run, families, last)
    return drawn


def _probe_panel(panel: SubFigure, run: Run, families: list[str], last: int) -> None:
    """One run: a column for each family of probes."""
    panel.suptitle(f"{run.mode}, run {run.name}: cosines before realignment", fontsize=10.5, fontweight="bold")
    rows = panel.subplots(2, len(families), squeeze=False, sharex=True, sharey="row", height_ratios=[3, 2])
    for (means, shares), family in zip(rows.T, families, strict=True):
        names = run.probes.get(family, [])
        for number, name in enumerate(names):
            c, colour = curves(run, name), _colour(family, number, len(names))
            _over_steps(means, c, c.mean, color=colour, lw=1.3, label=name.split("/")[1])
            _over_steps(shares, c, c.negative, color=colour, lw=1.3)
        means.set_title(f"by {family.removesuffix('s')}", fontsize=9.5)
        shares.set(xlabel="iteration", xlim=(0, last))
        shares.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        shares.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        if names:
            place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.3), "ncols": 3}
            shares.legend(handles=list(means.lines), fontsize=7.5, handlelength=1.2, columnspacing=1, **place)
        means.axhline(0, **ZERO)
        shares.axhline(0.5, **ZERO)
    rows[0, 0].set_ylabel(f"mean of {COSINE}")
    rows[1, 0].set_ylabel("negative")


def _heat_map(axes: Axes, c: Curves, darkest: float) -> Any:
    """Density over iterations, with quantiles and mean."""
    edges = np.linspace(-1, 1, c.coarse.shape[1] + 1)
    mesh = axes.pcolormesh(c.edges, edges, c.coarse.T, cmap="Blues", vmin=0, vmax=darkest, rasterized=True)
    for style, values in zip(STYLES, c.quantiles.T, strict=True):
        _over_steps(axes, c, values, ls=style, **QUANTILE)
    _over_steps(axes, c, c.mean, **MEAN)
    axes.axhline(0, **ZERO)
    return mesh


def _overall(axes: Axes, run: Run, name: str, reach: float) -> None:
    density, normal = distribution(run.dynamics.total(name))
    axes.stairs(density, EDGES, fill=True, color=PALE)
    axes.plot(MIDDLES, normal, **NORMAL)
    axes.axvline(0, **ZERO)
    axes.set(xlim=(-reach, reach), xlabel=COSINE)
    axes.xaxis.set_major_locator(MaxNLocator(4, prune="both"))


def _over_steps(axes: Axes, c: Curves, values: np.ndarray, **style: Any) -> None:
    """A line through the middle of each column; one column alone is drawn over its width."""
    if len(values) == 1:
        axes.plot(c.edges, np.repeat(values, 2), **style)
    else:
        axes.plot((c.edges[1:] + c.edges[:-1]) / 2, values, **style)


def _around_half(shares: list[np.ndarray]) -> tuple[float, float]:
    """Limits around one half that hold all shares."""
    reach = max(0.05, 1.15 * max(float(np.abs(share - 0.5).max()) for share in shares))
    return max(0.0, 0.5 - reach), min(1.0, 0.5 + reach)


def _colour(family: str, number: int, count: int) -> Any:
    """Layers from light to dark, the others apart."""
    if family == "layers":
        return matplotlib.colormaps["viridis_r"](0.08 + 0.92 * number / max(count - 1, 1))
    return matplotlib.colormaps["tab10"](number % 10)


def _legend() -> list[Line2D]:
    quantiles = {"median": "-", "25%, 75%": "--", "5%, 95%": ":"}
    return [
        Line2D([], [], label="mean", **MEAN),
        *(Line2D([], [], label=label, ls=style, **QUANTILE) for label, style in quantiles.items()),
        Line2D([], [], label="share of negative", **NEGATIVE),
        Line2D([], [], label="normal, same mean and std", **NORMAL),
    ]
