"""The report of a run: one HTML file that needs nothing else, and its figures as PNG beside it."""

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from recipes.config import Config
from recipes.data.clips import EvalClips, Skipped
from recipes.data.workers import Loader
from recipes.evaluation import ranking
from recipes.evaluation.embedding import Embedded
from recipes.files import write_atomically
from recipes.model.harmonizer import compares_with_gamma, described
from recipes.training import metrics
from recipes.training.dynamics import BINS, TRAINING, Dynamics

matplotlib.use("Agg")
EXAMPLES = 8  # queries shown with what they found
FOUND = 5


def write(
    folder: Path, config: Config, results: dict[str, Any], embedded: Embedded, clips: EvalClips, counts: dict[str, int],
    dynamics: Dynamics,
) -> Path:  # fmt: skip
    """Write report.html and figures/*.png of a finished run.

    Args:
        folder: The run's folder, with its metrics.
        config: Its configuration.
        results: As in retrieval.json.
        embedded: The held-out clips after training.
        clips: Where they were read from.
        counts: Skipped clips and steps, and writes that failed.
        dynamics: The cosines of all steps.

    Returns:
        Path of the report.
    """
    rows, cosines = metrics.read(folder), dynamics.only(TRAINING)
    (folder / "figures").mkdir(exist_ok=True)
    figures = {}
    for name, figure in draw(rows, cosines, config).items():
        figure.savefig(folder / "figures" / f"{name}.png", dpi=150)
        figures[name] = _png((folder / "figures" / f"{name}.png").read_bytes())
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("report.html.j2").render(
        config=config, harmonizer=described(config), results=results, figures=figures, counts=counts,
        examples=examples(embedded, clips, config) if config.clip.inputs == "raw" else [],
        summary=summary(cosines), recalls=ranking.RECALLS,
    )  # fmt: skip
    write_atomically(folder / "report.html", page)
    return folder / "report.html"


def draw(rows: list[dict[str, Any]], cosines: Dynamics, config: Config) -> dict[str, Figure]:
    """The figures of a run from its metrics and cosines: losses, agreement over training, and its distribution."""
    steps = [row["step"] for row in rows]
    figures = {}

    figure = _figure()
    axes = figure.subplots()
    for name, label in (("loss_va", "video-audio"), ("loss_vt", "video-text")):
        axes.plot(steps, [row.get(name, np.nan) for row in rows], label=label)
    axes.set(xlabel="step", ylabel="loss (nats)", title="Contrastive losses")
    axes.legend(frameon=False)
    figures["losses"] = figure

    measured = [row for row in rows if "agreement_mean" in row]
    if not measured:
        return figures
    steps = [row["step"] for row in measured]
    mean, std = (np.array([row[f"agreement_{k}"] for row in measured], dtype=float) for k in ("mean", "std"))

    figure = _figure()
    axes, shares = figure.subplots(2, sharex=True, height_ratios=[3, 2])
    axes.fill_between(steps, mean - std, mean + std, alpha=0.2, label="± one standard deviation")
    axes.plot(steps, mean, label="mean")
    if compares_with_gamma(config):
        axes.plot(steps, [row.get("gamma", np.nan) for row in measured], "--", color="grey", label="gamma")
    axes.set(ylabel="cos(g_va, g_vt)", title="Agreement before realignment")
    shares.plot(steps, [row.get("conflicts", np.nan) for row in measured], color="C3", label="in conflict")
    shares.plot(steps, [row.get("kept", np.nan) for row in measured], color="C2", label="kept")
    shares.set(xlabel="step", ylabel="share of samples", ylim=(0, 1.05))
    axes.margins(y=0.25)
    axes.legend(frameon=False, fontsize="small", ncols=3, loc="upper left")
    shares.legend(frameon=False, fontsize="small", ncols=2, loc="lower left")
    figures["agreement"] = figure

    figure = _figure()
    axes = figure.subplots()
    first, last, (histograms, _) = cosines.of(TRAINING)
    for part in (part for part in np.array_split(np.arange(len(first)), 3) if len(part)):
        counts = histograms.counts[part].sum(0).numpy()
        edges = np.linspace(-1, 1, len(counts) + 1)
        label = f"steps {first[part[0]]} to {last[part[-1]]}"
        axes.stairs(counts / counts.sum() / np.diff(edges), edges, label=label, lw=1.5)
    axes.axvline(0, color="grey", lw=0.8)
    axes.set(xlabel="cos(g_va, g_vt)", ylabel="density", title="Distribution of agreement")
    axes.legend(frameon=False)
    figures["cosines"] = figure
    return figures


def _figure() -> Figure:
    return Figure(figsize=(6.4, 4.2), layout="constrained")


def summary(cosines: Dynamics) -> dict[str, Any]:
    """Moments of the cosines over the whole run, and the share of negative ones; {} of none."""
    if not cosines.intervals:
        return {}
    histogram, m = cosines.total(TRAINING)
    if not m.number:  # no sample had both losses
        return {}
    return {
        "samples": int(m.number),
        "mean": float(m.mean),
        "std": float(m.std),
        "negative": float(histogram.counts[: BINS // 2].sum() / m.number),
        "skew": float(m.skew),
        "kurtosis": float(m.kurtosis),
    }


def examples(embedded: Embedded, clips: EvalClips, config: Config) -> list[dict[str, Any]]:
    """A few captions, spread over the test clips, with their own clip and the clips they found first."""
    if not embedded.text_valid.all():  # the clips to show are those of an index without any text
        return []
    video, text = embedded.vectors["vt_video"], embedded.vectors["vt_text"]
    ranks = ranking.ranks(text, video)
    shown = []
    queries = np.unique(np.linspace(0, len(text) - 1, EXAMPLES).astype(int)).tolist()
    orders = [ranking.best(text[query], video, FOUND) for query in queries]
    keys = [[(embedded.items[i], 0) for i in (query, *order)] for query, order in zip(queries, orders, strict=True)]
    read = Loader(clips, keys, list, config.data.workers, config.data.timeout)
    for query, order, (own, *found) in zip(queries, orders, read, strict=True):
        if isinstance(own, Skipped):
            continue
        shown.append(
            {
                "id": own.id,
                "start": own.start,
                "caption": own.captions[0],
                "rank": int(ranks[query]),
                "frames": [picture(own.video[i]) for i in (0, len(own.video) // 2, -1)],
                "found": [
                    {"image": picture(clip.video[len(clip.video) // 2]), "own": i == query, "caption": clip.captions[0]}
                    for i, clip in zip(order, found, strict=True)
                    if not isinstance(clip, Skipped)
                ],
            }
        )
    return shown


def picture(frame: np.ndarray) -> str:
    """A frame, uint8 (H, W, 3), as a data URL."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return _png(buffer.getvalue())


def _png(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()
