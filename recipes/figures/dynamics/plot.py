"""The distribution of the cosines of runs over their steps, as pictures: figure 3 of the paper's supplement."""

import string
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from recipes.figures.dynamics import curves as curving
from recipes.figures.dynamics.curves import QUANTILES, Curves, bin_edges
from recipes.figures.dynamics.runs import BEFORE, Run, described
from recipes.training.probes import FAMILIES

matplotlib.use("Agg")

MEAN, NEGATIVE, QUANTILE, NORMAL = "#c4420b", "#1668b0", "#222222", "#c4420b"
STYLES = dict(zip(QUANTILES, (":", "--", "-", "--", ":"), strict=True))
COSINE = r"$\cos(g_{va},\, g_{vt})$"
DPI = 200


def draw(runs: list[Run], name: str) -> Figure:
    """One panel for each run: density over iterations with mean and quantiles, share of negatives, overall density."""
    drawn = [curving.curves(run, name) for run in runs]
    shown = [c.shown for c in drawn]
    extent = curving.extent([c.density for c in drawn])
    darkest = curving.darkest(drawn)
    figure = Figure(figsize=(3.3 * len(runs) + 0.9, 6.6), dpi=DPI, layout="constrained")
    rows = figure.subplots(3, len(runs), squeeze=False, sharey="row", height_ratios=[3, 1.25, 1.5])
    for i, (run, c, density) in enumerate(zip(runs, drawn, shown, strict=True)):
        heat, shares, overall = rows[:, i]
        edges = np.linspace(-1, 1, density.shape[1] + 1)
        mesh = heat.pcolormesh(c.edges, edges, density.T, cmap="Blues", vmin=0, vmax=darkest, rasterized=True)
        for q, values in zip(QUANTILES, c.quantiles.T, strict=True):
            _over_steps(heat, c, values, color=QUANTILE, lw=0.9, ls=STYLES[q])
        _over_steps(heat, c, c.mean, color=MEAN, lw=1.6)
        heat.axhline(0, color="grey", lw=0.6)
        heat.set(ylim=(-extent, extent))
        heat.set_title(f"{title(i, run)}\n", fontsize=10.5, fontweight="bold")
        heat.text(0.5, 1.015, f"run {run.name}", transform=heat.transAxes, ha="center", va="bottom", fontsize=8)
        _over_steps(shares, c, c.negative, color=NEGATIVE, lw=1.4)
        shares.axhline(0.5, color="grey", lw=0.6)
        shares.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        shares.set_xlabel("iteration")
        for axes in (heat, shares):
            axes.set_xlim(0, max(float(other.edges[-1]) for other in drawn))
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, prune="upper"))
        heat.tick_params(labelbottom=False)
        _overall(overall, run, name, extent)
    rows[1, 0].set(ylabel="negative", ylim=curving.share_range(drawn))
    rows[0, 0].set_ylabel(COSINE)
    rows[2, 0].set_ylabel("density")
    figure.colorbar(mesh, ax=rows[0].tolist(), label="density at an iteration", pad=0.01, aspect=30)
    figure.suptitle(f"Agreement of gradients over {described(runs[0].config, name)}", fontsize=11.5)
    figure.legend(
        handles=_legend(), loc="outside lower center", ncols=6, frameon=False, fontsize=8,
        title=BEFORE, title_fontsize=9,
    )  # fmt: skip
    return figure


def draw_probes(runs: list[Run]) -> Figure | None:
    """Mean and share of negatives over iterations for every part that was probed; None where no run has probes."""
    probed = [run for run in runs if families(run)]
    if not probed:
        return None
    shown = [family for family in FAMILIES if any(family in families(run) for run in probed)]
    last = max(interval.last for run in probed for interval in run.dynamics.intervals)
    figure = Figure(figsize=(max(3.1 * len(shown) + 0.6, 5.5), 4.6 * len(probed) + 0.4), dpi=DPI, layout="constrained")
    for panel, run in zip(figure.subfigures(len(probed), 1, squeeze=False).flat, probed, strict=True):
        panel.suptitle(f"{run.term}, run {run.name}: cosines before realignment", fontsize=10.5, fontweight="bold")
        rows = panel.subplots(2, len(shown), squeeze=False, sharex=True, sharey="row", height_ratios=[3, 2])
        for column, family in zip(rows.T, shown, strict=True):
            names = families(run).get(family, [])
            for number, part in enumerate(names):
                colour = colour_of(family, number, len(names))
                c = curving.curves(run, part)
                label = part.split("/")[1]
                _over_steps(column[0], c, c.mean, color=colour, lw=1.3, label=label)
                _over_steps(column[1], c, c.negative, color=colour, lw=1.3)
            column[0].set_title(f"by {family.removesuffix('s')}", fontsize=9.5)
            column[1].set(xlabel="iteration", xlim=(0, last))
            column[1].xaxis.set_major_locator(MaxNLocator(5, integer=True))
            column[1].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            column[0].axhline(0, color="grey", lw=0.6)
            column[1].axhline(0.5, color="grey", lw=0.6)
            if names:
                column[1].legend(
                    handles=column[0].lines[: len(names)], fontsize=7.5, frameon=False, ncols=3,
                    handlelength=1.2, columnspacing=1, loc="upper center", bbox_to_anchor=(0.5, -0.3),
                )  # fmt: skip
        rows[0, 0].set_ylabel(f"mean of {COSINE}")
        rows[1, 0].set_ylabel("negative")
    return figure


def title(number: int, run: Run) -> str:
    """The letter of a panel and what the paper calls the mode of its run."""
    return f"({string.ascii_lowercase[number % 26]}) {run.term}"


def families(run: Run) -> dict[str, list[str]]:
    """The names of the probes of a run, by family."""
    found: dict[str, list[str]] = {}
    for name in run.dynamics.names:
        if "/" in name:
            found.setdefault(name.split("/")[0], []).append(name)
    return found


def colour_of(family: str, number: int, count: int) -> Any:
    """Layers from light to dark, the others apart."""
    if family == "layers":
        return matplotlib.colormaps["viridis_r"](0.08 + 0.92 * number / max(count - 1, 1))
    return matplotlib.colormaps["tab10"](number % 10)


def _over_steps(axes: Axes, c: Curves, values: np.ndarray, **style: Any) -> None:
    """A line through the middle of each column; one column alone is drawn over its width."""
    if len(values) == 1:
        axes.plot(c.edges, np.repeat(values, 2), **style)
    else:
        axes.plot(c.centres, values, **style)


def _overall(axes: Axes, run: Run, name: str, extent: float) -> None:
    density, normal = curving.distribution(run.dynamics.total(name))
    edges = bin_edges()
    axes.stairs(density, edges, fill=True, color="#9dc3e6")
    axes.plot((edges[1:] + edges[:-1]) / 2, normal, color=NORMAL, lw=1.2, ls=(0, (4, 2)))
    axes.axvline(0, color="grey", lw=0.6)
    axes.set(xlim=(-extent, extent), xlabel=COSINE)
    axes.xaxis.set_major_locator(MaxNLocator(4, prune="both"))


def _legend() -> list[Line2D]:
    lines = [Line2D([], [], color=MEAN, lw=1.6, label="mean")]
    lines += [
        Line2D([], [], color=QUANTILE, lw=0.9, ls=ls, label=label)
        for ls, label in (("-", "median"), ("--", "25%, 75%"), (":", "5%, 95%"))
    ]
    lines.append(Line2D([], [], color=NEGATIVE, lw=1.4, label="share of negative"))
    return [*lines, Line2D([], [], color=NORMAL, lw=1.2, ls=(0, (4, 2)), label="normal, same mean and std")]
