"""What a realignment makes of two gradients in the plane, for methods whose weights are not drawn at random."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Polygon
from torch import Tensor

import harmony
from recipes.figures.style import BLUE, GREY, INK, ORANGE, figure

COLOURS = (BLUE, ORANGE)  # of the two gradients
CONE, CONE_EDGE = "#dcefdc", "#7db57d"
BAND = 0.28  # opacity of the weighted gradients
WIDTH = 7.0  # inches; as many hundreds of pixels on a page
SIDE, BELOW, ABOVE, ABOVE_SMALL = 1.45, 0.6, 2.36, 0.92  # room around the origin of a panel, and of a small one
SCALES = {1.0: "", 1 / 2: "½", 1 / 4: "¼", 1 / 8: "⅛"}  # at which a result may be drawn
TARGET = 0.3  # cosine of GradVac
LEGEND: dict[str, Any] = {
    "fontsize": 7.8,
    "handlelength": 1.8,
    "handler_map": {tuple: HandlerTuple(ndivide=None, pad=0)},
}


@dataclass(frozen=True)
class Panel:
    """Two gradients that are mirrored at the vertical but for their norms, the first to the right."""

    name: str  # what they do
    degrees: float  # angle between them
    norms: tuple[float, float]

    @property
    def gradients(self) -> Tensor:
        """Both as rows (2, 2), float64."""
        half = math.radians(self.degrees) / 2
        unit = torch.tensor([[math.sin(half), math.cos(half)], [-math.sin(half), math.cos(half)]], dtype=torch.float64)
        return unit * torch.tensor(self.norms, dtype=torch.float64)[:, None]

    @property
    def caption(self) -> str:
        """Name, angle, norms."""
        return f"{self.name}: {self.degrees:g}°, norms {self.norms[0]:g} and {self.norms[1]:g}"


CONFLICT = Panel("conflict", 120, (1.0, 0.7))
STRONG = Panel("strong conflict", 150, (1.0, 0.3))
AGREEMENT = Panel("agreement", 50, (1.0, 0.7))
PANELS = (CONFLICT, STRONG, AGREEMENT)


class Method(NamedTuple):
    """How a method is drawn."""

    title: str  # name and settings
    weigh: Callable[[Tensor], Tensor]  # Gram blocks (1, 2, 2) -> weights (1, 2)
    own_scale: bool = False  # whether the length of its update does not follow that of the gradients


def _gradvac(gram: Tensor) -> Tensor:
    method = harmony.realign.gradvac(target=TARGET)
    return method.update(gram, method.init())[0]


# random and pcgrad_random are left out: what they give is another picture at every step (for two losses the second is
# pcgrad).
METHODS = {
    "summed": Method("summed", harmony.realign.summed),
    "mean": Method("mean", harmony.realign.mean),
    "normalized": Method("normalized", harmony.realign.normalized, own_scale=True),
    "pcgrad": Method("pcgrad", harmony.realign.pcgrad),
    "gradvac": Method(f"gradvac, target {TARGET}", _gradvac),
    "upgrad": Method("upgrad", harmony.realign.upgrad),
    "dualproj": Method("dualproj", harmony.realign.dualproj),
    "mgda": Method("mgda", harmony.realign.mgda),
    "cagrad": Method("cagrad, c 0.5", partial(harmony.realign.cagrad, c=0.5)),
    "imtl_g": Method("imtl_g", harmony.realign.imtl_g),
    "nash_mtl": Method("nash_mtl", harmony.realign.nash_mtl, own_scale=True),
    "fairgrad": Method("fairgrad, alpha 2", partial(harmony.realign.fairgrad, alpha=2.0), own_scale=True),
    "aligned_mtl": Method("aligned_mtl", harmony.realign.aligned_mtl),
    "config": Method("config", harmony.realign.config),
}


def draw(name: str) -> Figure:
    """One method on all panels."""
    drawn = figure(WIDTH, 3.1)
    drawn.get_layout_engine().set(w_pad=0.04, h_pad=0.04, wspace=0.02)
    method = METHODS[name]
    for axes, panel in zip(drawn.subplots(1, len(PANELS)), PANELS, strict=True):
        _panel(axes, panel, method)
        axes.set_title(panel.caption, fontsize=7.8)
    drawn.suptitle(method.title, fontsize=11, fontweight="bold")
    drawn.legend(**_legend(), loc="outside lower center", ncols=6, columnspacing=1.3, **LEGEND)
    return drawn


def overview() -> Figure:
    """All methods on the strong conflict, and the legend in the place that remains."""
    columns = 4
    rows = -(-(len(METHODS) + 1) // columns)
    drawn = figure(WIDTH, 1.14 * rows + 0.25)
    drawn.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02)
    places = list(drawn.subplots(rows, columns).flat)
    for axes, method in zip(places, METHODS.values(), strict=False):
        _panel(axes, STRONG, method, small=True)
        axes.set_title(method.title, fontsize=8.5, fontweight="bold", pad=3)
    for axes in places[len(METHODS) :]:
        axes.axis("off")
    legend = places[len(METHODS)].legend(**_legend(), loc="center left", labelspacing=0.35, **LEGEND)
    legend.set_in_layout(False)
    drawn.suptitle(f"{STRONG.caption}; below, the weights", fontsize=9)
    return drawn


# --------------------------------------------------------------------------------------------------------------- parts
def _panel(axes: Axes, panel: Panel, method: Method, small: bool = False) -> None:
    g = panel.gradients
    weights = method.weigh((g @ g.T)[None])[0]
    weighted, update = weights[:, None] * g, weights @ g
    above = ABOVE_SMALL if small else ABOVE
    scale = _scale([*weighted.tolist(), update.tolist()], above)
    axes.set(xlim=(-SIDE, SIDE), ylim=(-BELOW, above), aspect="equal", xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color="#cccccc", lw=0.8)

    _cone(axes, panel)
    axes.plot(*g.sum(0), "o", color=GREY, ms=3.5 if small else 4.5, mfc="white", mew=1.2, gid="sum", zorder=3)
    for vector, colour in zip(weighted * scale, COLOURS, strict=True):
        axes.plot([0, vector[0]], [0, vector[1]], color=colour, lw=4 if small else 6, alpha=BAND, solid_capstyle="butt")
        across = torch.stack([vector, update * scale])
        axes.plot(across[:, 0], across[:, 1], color=GREY, lw=0.8, ls=(0, (3, 2)), zorder=2)
    for number, (vector, colour) in enumerate(zip(g, COLOURS, strict=True), 1):
        _arrow(axes, vector, colour, f"g{number}", 1.4 if small else 1.9)
        if not small:
            _label(axes, vector, colour, f"$g_{number}$")
    _arrow(axes, update * scale, INK, "update", 1.7 if small else 2.3)

    length = [f"|update| {float(update.norm()):.2f}"] if method.own_scale else []
    notes = length + ([f"drawn at {SCALES[scale]}"] if scale < 1 else [])
    labels = ("", "") if small else ("weights ", "own scale: " if length else "")
    _note(axes, labels[0] + ", ".join(map(_number, weights.tolist())), -0.3, small)
    if notes:
        _note(axes, labels[1] + ", ".join(notes), -0.49 if small else -0.47, small, style="italic")


def _note(axes: Axes, note: str, y: float, small: bool, style: str = "normal") -> None:
    size = 7.2 if small else 7.8
    text = axes.text(0, y, note, ha="center", va="center", fontsize=size, color="#333333", style=style)
    text.set_in_layout(False)


def _scale(vectors: list[list[float]], above: float) -> float:
    """The largest scale at which vectors stay inside a panel."""
    fits = (s for s in SCALES if all(abs(s * x) < 0.97 * SIDE and s * y < 0.97 * above for x, y in vectors))
    return next(fits, min(SCALES))


def _cone(axes: Axes, panel: Panel) -> None:
    """All updates that have no negative inner product with either gradient: around the vertical, whatever the norms."""
    half = math.radians(180 - panel.degrees) / 2
    far = 6.0
    edges = far * np.array([[math.sin(half), math.cos(half)], [-math.sin(half), math.cos(half)]])
    axes.add_patch(Polygon([(0, 0), *edges], closed=True, color=CONE, lw=0, zorder=0))
    for x, y in edges:
        axes.plot([0, x], [0, y], color=CONE_EDGE, lw=0.8, zorder=1)


def _arrow(axes: Axes, tip: Tensor, colour: str, name: str, width: float) -> None:
    """An arrow from the origin; a short one has a small head and a thin shaft, so that it still looks like an arrow."""
    points = 72 * axes.get_figure().get_figwidth() / axes.get_subplotspec().get_gridspec().ncols / (2 * SIDE)
    head = min(2.7 * width + 1.5, 0.6 * points * float(tip.norm()))
    width = min(width, 0.4 * head)
    style = {"arrowstyle": "-|>,head_width=0.42,head_length=1", "mutation_scale": head, "joinstyle": "miter"}
    style |= {"color": colour, "lw": width, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=tuple(tip.tolist()), xytext=(0, 0), zorder=5, arrowprops=style).set_gid(name)


def _label(axes: Axes, tip: Tensor, colour: str, text: str) -> None:
    """The name of a gradient beside its tip, below the arrow."""
    direction = tip / tip.norm()
    below = torch.stack([direction[1].abs() * direction[0].sign(), -direction[0].abs()])
    x, y = (tip * 0.93 + 0.17 * below).tolist()
    axes.text(x, y, text, color=colour, fontsize=10, ha="center", va="center")


def _legend() -> dict[str, list[Any]]:
    bands = tuple(Line2D([], [], color=colour, lw=5, alpha=BAND, solid_capstyle="butt") for colour in COLOURS)
    entries = {
        "$g_1$": Line2D([], [], color=BLUE, lw=1.9),
        "$g_2$": Line2D([], [], color=ORANGE, lw=1.9),
        "weighted gradients": bands,
        "update": Line2D([], [], color=INK, lw=2.3),
        "plain sum": Line2D([], [], color=GREY, lw=0, marker="o", ms=4.5, mfc="white", mew=1.2),
        "conflicts with neither": Patch(facecolor=CONE, edgecolor=CONE_EDGE, lw=0.8),
    }
    return {"handles": list(entries.values()), "labels": list(entries)}


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
