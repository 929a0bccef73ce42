"""Metrics of a run: sums over an interval of steps, written as JSON lines and for TensorBoard.

The disk it takes is bounded by the number of intervals: a row holds moments and a histogram of the cosines, not the
cosines.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from harmony import stats
from recipes.training import jsonl
from recipes.training.checkpoint import write_atomically

BINS = 100


class Metrics:
    """Collects steps and writes a row for each interval."""

    def __init__(self, folder: Path, step: int) -> None:
        """Continue the metrics of a run at a step; rows after it, from a run that died, are dropped."""
        self.file = folder / "metrics.jsonl"
        write_atomically(self.file, jsonl.dump([row for row in read(folder) if row["step"] <= step]))
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self._reset()

    def add(self, values: dict[str, float], cosines: Tensor | None, defined: Tensor | None) -> None:
        """Count one step: scalars, and the cosines (B,) of its samples with a mask of those that have one."""
        self.steps += 1
        for name, value in values.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + value, count + 1)
        if cosines is not None:
            self.moments = self.moments.merge(stats.moments(cosines, defined))
            self.histogram = self.histogram.merge(stats.histogram(cosines, defined, bins=BINS))

    def write(self, step: int, **facts: float) -> dict[str, Any]:
        """Write the row of the interval that ends at ``step``, and begin another.

        Returns:
            The row: means over the interval, moments and histogram of the cosines, and ``facts`` as they are.
        """
        m = self.moments
        seen = int(m.number) > 0
        row: dict[str, Any] = {"step": step, **{k: total / count for k, (total, count) in self.sums.items()}, **facts}
        if seen:
            row |= {f"agreement_{k}": finite(getattr(m, k)) for k in ("mean", "std", "skew", "kurtosis")}
            row["agreement_histogram"] = self.histogram.counts.tolist()
        if self.steps:
            jsonl.append(self.file, row)
            for name, value in row.items():
                if isinstance(value, float) and name != "step":
                    self.board.add_scalar(name, value, step)
            if seen:
                self._draw_histogram(step)
            self.board.flush()
        self._reset()
        return row

    def close(self) -> None:
        """Flush and close the files."""
        self.board.close()

    def _reset(self) -> None:
        self.steps = 0
        self.sums: dict[str, tuple[float, int]] = {}
        nothing = torch.zeros(0)
        self.moments, self.histogram = stats.moments(nothing), stats.histogram(nothing, bins=BINS)

    def _draw_histogram(self, step: int) -> None:
        edges, m = self.histogram.edges, self.moments
        self.board.add_histogram_raw(
            "agreement", min=-1.0, max=1.0, num=int(m.number), sum=float(m.number * m.mean),
            sum_squares=float(m.m2 + m.number * m.mean**2), bucket_limits=edges[1:].tolist(),
            bucket_counts=self.histogram.counts.tolist(), global_step=step,
        )  # fmt: skip


def read(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics."""
    return jsonl.read(folder / "metrics.jsonl")


def finite(value: Tensor) -> float | None:
    """A number for JSON, which knows no NaN."""
    number = float(value)
    return number if math.isfinite(number) else None
