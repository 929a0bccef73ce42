"""A long run in one picture: memory and faults, loss, and clips that were skipped."""

from pathlib import Path
from typing import Any

import numpy as np

from recipes.figures.style import BLUE, GREEN, GREY, ORANGE, RED, figure, save_png
from recipes.research.soak.launch import TRAINER, WORKER, Watch

COLOURS = {TRAINER: RED, WORKER: ORANGE}


def save(path: Path, watch: Watch, rows: list[dict[str, Any]]) -> None:
    """Draw what was watched, and the rows of the run's metrics."""
    drawn = figure(10, 6.4)
    above, below = drawn.subplots(2, 1)
    minutes = np.array(watch.seconds) / 60
    above.plot(minutes, watch.training, label="training processes", color=BLUE)
    above.plot(minutes, watch.loading, label="loaders' workers", color=GREEN)
    for kind, colour in COLOURS.items():
        times = [seconds / 60 for seconds, what in watch.faults if what == kind]
        above.plot([], [], color=colour, ls=":", label=f"a {kind} is killed")
        for time in times:
            above.axvline(time, color=colour, ls=":", lw=1)
    above.set(xlabel="minutes", ylabel="memory, MiB (shared pages once)", ylim=(0, None))
    above.legend(loc="lower right", ncols=2)
    steps = [row["step"] for row in rows if "loss" in row]
    losses = np.array([row["loss"] for row in rows if "loss" in row])
    window = max(len(losses) // 100, 1)
    smooth = np.convolve(losses, np.ones(window) / window, "valid")
    below.plot(steps, losses, color=BLUE, alpha=0.25, lw=0.5)
    below.plot(steps[window - 1 :], smooth, color=BLUE, label="loss")
    below.set(xlabel="step", ylabel="loss")
    counts = below.twinx()
    counts.plot([row["step"] for row in rows], [row["skipped_clips"] for row in rows], color=GREY)
    counts.set(ylabel="broken clips skipped (grey)", ylim=(0, None))
    save_png(drawn, path)
