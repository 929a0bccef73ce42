"""A long run in one picture: memory and faults, loss, and clips that were skipped."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from recipes.research.soak.launch import Watch

matplotlib.use("Agg")
COLOURS = {"training process": "tab:red", "worker": "tab:orange"}


def save(path: Path, watch: Watch, rows: list[dict[str, Any]]) -> None:
    """Draw what was watched, and the rows of the run's metrics."""
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    above, below = figure.subplots(2, 1)
    minutes = np.array(watch.seconds) / 60
    above.plot(minutes, watch.training, label="training processes", color="tab:blue")
    above.plot(minutes, watch.loading, label="loaders' workers", color="tab:green")
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
    below.plot(steps, losses, color="tab:blue", alpha=0.25, lw=0.5)
    below.plot(steps[window - 1 :], smooth, color="tab:blue", label="loss")
    below.set(xlabel="step", ylabel="loss")
    counts = below.twinx()
    counts.plot([row["step"] for row in rows], [row["skipped_clips"] for row in rows], color="tab:grey")
    counts.set(ylabel="broken clips skipped (grey)", ylim=(0, None))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
