"""The distribution of the cosines of runs over their steps, as a page to explore: one HTML file that needs no other."""

from pathlib import Path
from typing import Any

import jinja2
import matplotlib.colors
import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.basedatatypes import BaseTraceType
from plotly.subplots import make_subplots

from recipes.figures.dynamics import curves as curving
from recipes.figures.dynamics import plot as plots
from recipes.figures.dynamics import text
from recipes.figures.dynamics.curves import QUANTILES, bin_edges
from recipes.figures.dynamics.runs import BEFORE, Run, described

DASHES = ("dot", "dash", "solid", "dash", "dot")
COSINE = "cos(g_va, g_vt)"
TEMPLATES = Path(__file__).parents[1] / "templates"


def page(runs: list[Run], name: str, summary: dict[str, Any]) -> str:
    """The page: the panels for every name that all runs share, the numbers, and the probes.

    Args:
        runs: One panel for each.
        name: The cosines to show first.
        summary: As in dynamics.json.

    Returns:
        HTML with plotly's JavaScript in it.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    probed = [run for run in runs if plots.families(run)]
    figures = [(panels(runs, name), True)] + [(probes(run), False) for run in probed]
    return environment.get_template("dynamics.html.j2").render(
        over=summary["runs"][0]["over"], before=BEFORE, tables=text.tables(summary),
        probe_tables=text.probe_tables(summary),
        sentences=[text.sentence(c) for c in summary["comparisons"]], notes=text.NOTES,
        figures=[Markup(_html(figure, with_plotly)) for figure, with_plotly in figures],  # what plotly itself has made
    )  # fmt: skip


def panels(runs: list[Run], name: str) -> go.Figure:
    """Heat map, share of negatives and overall density of each run, with a menu of the names."""
    names = [n for n in runs[0].dynamics.names if all(n in run.dynamics.names for run in runs)]
    figure = make_subplots(
        rows=3, cols=len(runs), shared_yaxes=True, row_heights=[0.55, 0.2, 0.25], vertical_spacing=0.085,
        horizontal_spacing=0.025, subplot_titles=[f"{plots.title(i, run)}<br><sub>run {run.name}</sub>"
                                                  for i, run in enumerate(runs)],
    )  # fmt: skip
    owner: list[str] = []
    for n in names:
        drawn = [curving.curves(run, n) for run in runs]
        for column, (run, c) in enumerate(zip(runs, drawn, strict=True), 1):
            for row, trace in _traces(run, n, c, first=column == 1):
                figure.add_trace(trace.update(visible=n == name), row=row, col=column)
                owner.append(n)
    last = max(interval.last for run in runs for interval in run.dynamics.intervals)
    figure.update_xaxes(range=[0, last], row=1).update_xaxes(range=[0, last], title="iteration", row=2)
    figure.update_xaxes(title=COSINE, row=3).update_yaxes(tickformat=".0%", row=2)
    for row, label in enumerate((COSINE, "negative", "density"), 1):
        figure.update_yaxes(title=label, row=row, col=1)
    figure.add_hline(0.5, row=2, line={"color": "grey", "width": 0.7})
    figure.update_layout(
        height=820, template="plotly_white", margin={"l": 60, "r": 20, "t": 110, "b": 50}, bargap=0,
        coloraxis={"colorscale": "Blues", "colorbar": {"title": "density", "len": 0.5, "y": 0.78}},
        legend={"orientation": "h", "y": -0.09}, hovermode="closest",
        updatemenus=[_menu(runs, names, name, owner)] if len(names) > 1 else [],
    )  # fmt: skip
    return figure.update_layout(_ranges(runs, name))


def probes(run: Run) -> go.Figure:
    """Mean and share of negatives over iterations for every part that was probed in a run."""
    found = plots.families(run)
    figure = make_subplots(
        rows=2, cols=len(found), shared_xaxes=True, shared_yaxes=True, vertical_spacing=0.06, horizontal_spacing=0.03,
        row_heights=[0.6, 0.4], subplot_titles=[f"by {family.removesuffix('s')}" for family in found],
    )  # fmt: skip
    for column, (family, names) in enumerate(found.items(), 1):
        for number, name in enumerate(names):
            c = curving.curves(run, name)
            colour = matplotlib.colors.to_hex(plots.colour_of(family, number, len(names)))
            line = {
                "x": c.centres, "mode": "lines+markers" if len(c.mean) == 1 else "lines", "line": {"color": colour},
                "name": name.split("/")[1], "legendgroup": name,
                "legend": "legend" if column == 1 else f"legend{column}",
            }  # fmt: skip
            figure.add_scatter(**line, y=_short(c.mean), row=1, col=column)
            figure.add_scatter(**line, y=_short(c.negative), row=2, col=column, showlegend=False)
    for column in range(1, len(found) + 1):
        left, _ = figure.layout["xaxis" if column == 1 else f"xaxis{column}"].domain
        legend = {"orientation": "h", "x": left, "xanchor": "left", "y": -0.16, "entrywidth": 62}
        figure.update_layout({"legend" if column == 1 else f"legend{column}": legend})
    figure.update_yaxes(title="mean", row=1, col=1).update_yaxes(title="negative", row=2, col=1)
    figure.update_yaxes(tickformat=".0%", row=2).update_xaxes(title="iteration", row=2)
    title = f"{run.term}, run {run.name}: parts of the backbone, before realignment"
    return figure.update_layout(height=620, template="plotly_white", title=title, margin={"l": 60, "r": 20, "t": 90})


def _traces(run: Run, name: str, c: curving.Curves, first: bool) -> list[tuple[int, BaseTraceType]]:
    """What one panel shows of a name: rows of the grid and traces."""
    label = {"showlegend": first, "hovertemplate": "iteration %{x:.0f}: %{y:.3f}"}
    steps = {"x": c.centres, "mode": "lines+markers" if len(c.mean) == 1 else "lines"}
    heat = go.Heatmap(
        x=c.edges, y=np.linspace(-1, 1, c.shown.shape[1] + 1), z=_short(c.shown.T), coloraxis="coloraxis",
        name="density",
        hovertemplate="iteration %{x:.0f}, cosine %{y:.2f}: density %{z:.2f}<extra></extra>",
    )  # fmt: skip
    traces: list[tuple[int, BaseTraceType]] = [(1, heat)]
    for q, dash, values in zip(QUANTILES, DASHES, c.quantiles.T, strict=True):
        style = {"color": plots.QUANTILE, "width": 1, "dash": dash}
        traces.append((1, go.Scatter(**steps, y=_short(values), line=style, name=f"{q:.0%} quantile", **label)))
    mean = go.Scatter(**steps, y=_short(c.mean), line={"color": plots.MEAN, "width": 2.5}, name="mean", **label)
    share = go.Scatter(
        **steps, y=_short(c.negative), line={"color": plots.NEGATIVE}, name="share of negative", showlegend=first,
        hovertemplate="iteration %{x:.0f}: %{y:.1%}",
    )  # fmt: skip
    density, normal = curving.distribution(run.dynamics.total(name))
    middle = (bin_edges()[1:] + bin_edges()[:-1]) / 2
    bars = go.Bar(x=middle, y=_short(density), marker_color="#9dc3e6", name="all iterations", **label)
    curve = go.Scatter(
        x=middle, y=_short(normal), line={"color": plots.NORMAL, "dash": "dash"}, name="normal, same mean and std",
        **label,
    )  # fmt: skip
    return [*traces, (1, mean), (2, share), (3, bars), (3, curve)]


def _menu(runs: list[Run], names: list[str], name: str, owner: list[str]) -> dict[str, Any]:
    """Shows the traces that a name owns, on axes that fit them."""
    buttons = [
        {
            "label": described(runs[0].config, n).removeprefix("the "),
            "method": "update",
            "args": [{"visible": [o == n for o in owner]}, _ranges(runs, n)],
        }
        for n in names
    ]
    return {"buttons": buttons, "active": names.index(name), "x": 0, "xanchor": "left", "y": 1.16, "yanchor": "bottom"}


def _ranges(runs: list[Run], name: str) -> dict[str, Any]:
    """What the axes and colours of a name have in common over all panels."""
    drawn = [curving.curves(run, name) for run in runs]
    extent = curving.extent([c.density for c in drawn])
    n = len(runs)
    ranges: dict[str, Any] = {"coloraxis.cmin": 0, "coloraxis.cmax": curving.darkest(drawn)}
    for column in range(1, n + 1):
        ranges[f"yaxis{column if column > 1 else ''}.range"] = [-extent, extent]
        ranges[f"yaxis{n + column}.range"] = list(curving.share_range(drawn))
        ranges[f"xaxis{2 * n + column}.range"] = [-extent, extent]
    return ranges


def _short(values: np.ndarray) -> np.ndarray:
    """Single precision, which plotly writes in half the bytes."""
    return np.asarray(values, dtype=np.float32)


def _html(figure: go.Figure, with_plotly: bool) -> str:
    html: str = figure.to_html(full_html=False, include_plotlyjs=with_plotly, config={"displaylogo": False})
    return html
