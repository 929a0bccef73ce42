"""The page that compares models: a sentence, a picture, a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from recipes.evaluation import ranking
from recipes.figures.html import data_url, render
from recipes.figures.style import BLUE, GREY, figure, save_png
from recipes.files import write_atomically


def write(out: Path, figures: dict[str, dict[str, Any]], sentences: Sequence[str], reports: dict[str, str]) -> Path:
    """Write a page, and its picture beside it.

    Args:
        out: The page.
        figures: Of retrieval, by model, see `ranking.evaluate`.
        sentences: What came of it.
        reports: Pages of single models, by model.

    Returns:
        The page.
    """
    picture = save_png(draw(figures), out.with_suffix(".png"))
    values = {"figures": figures, "sentences": sentences, "reports": reports, "recalls": ranking.RECALLS}
    write_atomically(out, render("comparison.html.j2", picture=data_url(picture.read_bytes(), "image/png"), **values))
    return out


def draw(figures: dict[str, dict[str, Any]]) -> Figure:
    """R@10 of each model with its interval."""
    drawn = figure(6.4, 0.9 + 0.45 * len(figures))
    axes = drawn.subplots()
    names = list(figures)[::-1]
    values = [100 * figures[name]["R@10"] for name in names]
    intervals = [[100 * bound for bound in figures[name]["R@10_interval"]] for name in names]
    errors = [[v - low for v, (low, _) in zip(values, intervals, strict=True)]]
    errors.append([high - v for v, (_, high) in zip(values, intervals, strict=True)])
    axes.barh(names, values, color=BLUE, xerr=errors, ecolor="#111111", capsize=3, height=0.6)
    axes.axvline(100 * next(iter(figures.values()))["R@10_chance"], color=GREY, linestyle="--", label="chance")
    axes.set_xlabel("R@10 of held-out clips by their text, percent; 95% interval over videos")
    axes.legend(loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)
    return drawn
