"""The report of a run: one HTML file that needs nothing else, and its figures as PNG beside it."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from recipes.config import Config
from recipes.data.clips import EvalClips
from recipes.data.skipped import Skipped
from recipes.data.workers import Loader
from recipes.evaluation import ranking
from recipes.evaluation.embedding import Embedded
from recipes.figures.html import data_url, encoded, render
from recipes.figures.style import BLUE, GREEN, GREY, ORANGE, RED, figure, save_png
from recipes.files import write_atomically
from recipes.model.harmonizer import compares_with_gamma, described
from recipes.training import metrics
from recipes.training.dynamics import BINS, TRAINING, Dynamics

SIZE = (6.4, 4.2)  # inches of a figure
EXAMPLES = 8  # queries shown with what they found
FOUND = 5


def write(
    folder: Path,
    config: Config,
    results: dict[str, Any],
    embedded: Embedded,
    clips: EvalClips,
    counts: dict[str, int],
    dynamics: Dynamics,
) -> Path:
    """Write report.html and figures/*.png of a finished run; returns the path of the report.

    Args:
        folder: The run's folder, with its metrics.
        config: Its configuration.
        results: As in retrieval.json.
        embedded: The held-out clips after training, read from ``clips``.
        clips: Where they were read from.
        counts: Skipped clips and steps, and writes that failed.
        dynamics: The cosines of all steps.
    """
    cosines = dynamics.only(TRAINING)
    histogram, moments = cosines.total(TRAINING)
    (folder / "figures").mkdir(exist_ok=True)
    figures = {}
    for name, drawn in draw(metrics.read_metrics(folder), cosines, config).items():
        path = save_png(drawn, folder / "figures" / f"{name}.png")
        figures[name] = data_url(path.read_bytes(), "image/png")
    page = render(
        "report.html.j2",
        config=config,
        harmonizer=described(config),
        results=results,
        figures=figures,
        counts=counts,
        examples=examples(embedded, clips, config) if config.clip.inputs == "raw" else [],
        moments=moments,
        negative=float(histogram.counts[: BINS // 2].sum() / moments.number),
        recalls=ranking.RECALLS,
    )
    write_atomically(folder / "report.html", page)
    return folder / "report.html"


def draw(rows: list[dict[str, Any]], cosines: Dynamics, config: Config) -> dict[str, Figure]:
    """The figures of a run from its metrics and cosines: losses, agreement over training, and its distribution."""
    figures = {"losses": draw_losses(rows)}
    measured = [row for row in rows if "agreement_mean" in row]
    if measured:
        figures["agreement"] = draw_agreement(measured, with_gamma=compares_with_gamma(config))
        figures["cosines"] = draw_cosines(cosines)
    return figures


def draw_losses(rows: list[dict[str, Any]]) -> Figure:
    """Both losses over training."""
    drawn = figure(*SIZE)
    axes = drawn.subplots()
    for name, label, colour in (("loss_va", "video-audio", BLUE), ("loss_vt", "video-text", ORANGE)):
        axes.plot(_column(rows, "step"), _column(rows, name), color=colour, label=label)
    axes.set(xlabel="step", ylabel="loss (nats)", title="Contrastive losses")
    axes.legend()
    return drawn


def draw_agreement(rows: list[dict[str, Any]], with_gamma: bool) -> Figure:
    """Mean and spread of the cosines over training, and the shares of samples in conflict and kept."""
    drawn = figure(*SIZE)
    axes, shares = drawn.subplots(2, sharex=True, height_ratios=[3, 2])
    steps, mean, std = (_column(rows, name) for name in ("step", "agreement_mean", "agreement_std"))
    axes.fill_between(steps, mean - std, mean + std, color=BLUE, lw=0, alpha=0.2, label="± one standard deviation")
    axes.plot(steps, mean, color=BLUE, label="mean")
    if with_gamma:
        axes.plot(steps, _column(rows, "gamma"), "--", color=GREY, label="gamma")
    axes.set(ylabel="cos(g_va, g_vt)", title="Agreement before realignment")
    axes.margins(y=0.25)
    shares.plot(steps, _column(rows, "conflicts"), color=RED, label="in conflict")
    shares.plot(steps, _column(rows, "kept"), color=GREEN, label="kept")
    shares.set(xlabel="step", ylabel="share of samples", ylim=(0, 1.05))
    axes.legend(fontsize="small", ncols=3, loc="upper left")
    shares.legend(fontsize="small", ncols=2, loc="lower left")
    return drawn


def draw_cosines(cosines: Dynamics) -> Figure:
    """The distribution of the cosines in each third of training."""
    drawn = figure(*SIZE)
    axes = drawn.subplots()
    first, last, (histograms, _) = cosines.series(TRAINING)
    thirds = [third for third in np.array_split(np.arange(len(first)), 3) if len(third)]
    for third, colour in zip(thirds, (BLUE, ORANGE, GREEN), strict=False):
        counts = histograms.counts[third].sum(0).numpy()
        edges = np.linspace(-1, 1, len(counts) + 1)
        label = f"steps {first[third[0]]} to {last[third[-1]]}"
        axes.stairs(counts / counts.sum() / np.diff(edges), edges, color=colour, label=label, lw=1.5)
    axes.axvline(0, color=GREY, lw=0.8)
    axes.set(xlabel="cos(g_va, g_vt)", ylabel="density", title="Distribution of agreement")
    axes.legend()
    return drawn


def _column(rows: list[dict[str, Any]], name: str) -> np.ndarray:
    """One number of every row, NaN where there is none."""
    return np.array([row.get(name, np.nan) for row in rows], dtype=float)


def examples(embedded: Embedded, clips: EvalClips, config: Config) -> list[dict[str, Any]]:
    """A few captions, spread over the test clips, with their own clip and the clips they found first."""
    if not embedded.text_valid.all():  # the clips to show are those of an index without any text
        return []
    video, text = embedded.vectors["vt_video"], embedded.vectors["vt_text"]
    ranks = ranking.ranks(text, video)
    queries = np.unique(np.linspace(0, len(text) - 1, EXAMPLES).astype(int)).tolist()
    orders = [ranking.best(text[query], video, FOUND) for query in queries]
    keys = [[(embedded.items[i], 0) for i in (query, *order)] for query, order in zip(queries, orders, strict=True)]
    read = Loader(clips, keys, list, config.data.workers, config.data.timeout)
    shown = []
    for query, order, (own, *others) in zip(queries, orders, read, strict=True):
        if isinstance(own, Skipped):
            continue
        readable = [(i, clip) for i, clip in zip(order, others, strict=True) if not isinstance(clip, Skipped)]
        shown.append(
            {
                "id": own.id,
                "start": own.start,
                "caption": own.captions[0],
                "rank": int(ranks[query]),
                "frames": [picture(own.video[i]) for i in (0, len(own.video) // 2, -1)],
                "found": [
                    {"image": picture(clip.video[len(clip.video) // 2]), "own": i == query, "caption": clip.captions[0]}
                    for i, clip in readable
                ],
            }
        )
    return shown


def picture(frame: np.ndarray) -> str:
    """A frame, uint8 (H, W, 3), as a data URL."""
    return data_url(encoded(frame, "PNG"), "image/png")
