"""One style for all plots: colours, resolution, layout, and a small PNG in the end."""

import io
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

matplotlib.use("Agg")
matplotlib.rcParams.update({"legend.frameon": False, "figure.dpi": 200})

BLUE, ORANGE, GREEN, RED = "#1668b0", "#d4560a", "#15803d", "#a31d1d"
INK, GREY, PALE = "#111111", "#8a8a8a", "#9dc3e6"
PALETTE = 96  # colours of a PNG: a third of the size of true colours, and as smooth


def figure(width: float, height: float) -> Figure:
    """An empty white figure, in inches, whose parts make room for each other."""
    return Figure(figsize=(width, height), facecolor="white", layout="constrained")


def save_png(drawn: Figure, path: Path) -> Path:
    """Write a figure as a PNG with a palette."""
    full = io.BytesIO()
    drawn.savefig(full, format="png")
    picture = Image.open(full).convert("RGB").quantize(PALETTE, dither=Image.Dither.NONE)
    picture.save(path, "PNG", optimize=True, dpi=(drawn.dpi, drawn.dpi))
    return path
