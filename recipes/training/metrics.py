"""Metrics of a run: means over an interval of steps, written as JSON lines and for TensorBoard."""

import logging
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from recipes.files import jsonl, write_atomically
from recipes.training.dynamics import NOTHING, seen_in

log = logging.getLogger(__name__)


class Metrics:
    """Collects steps and writes a row for each interval. A failure to write does not end the run."""

    def __init__(self, folder: Path, step: int) -> None:
        """Continue the metrics of a run at a step; drop later rows, which a run that died has left."""
        self.file = folder / "metrics.jsonl"
        write_atomically(self.file, jsonl.as_text([row for row in read_metrics(folder) if row["step"] <= step]))
        self.rows, self.failures = jsonl.Rows(self.file), 0  # failures: of TensorBoard's file
        self.board: SummaryWriter | None = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self.undrawn = NOTHING
        self._reset()

    def add(self, values: dict[str, float], cosines: Tensor | None, defined: Tensor | None) -> None:
        """Count one step: scalars, and the cosines (B,) of its samples with a mask of those that have one."""
        self.steps += 1
        for name, value in values.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + value, count + 1)
        if cosines is not None:
            self.seen = self.seen.merge(seen_in(cosines, defined))

    def write(self, step: int, **facts: float) -> dict[str, Any]:
        """Write and return the row of the interval that ends here, and begin another: means, moments, and ``facts``."""
        m = self.seen.moments
        row: dict[str, Any] = {"step": step, **{k: total / count for k, (total, count) in self.sums.items()}, **facts}
        if m.number > 0:
            row |= {f"agreement_{k}": finite(getattr(m, k)) for k in ("mean", "std", "skew", "kurtosis")}
        if self.steps:
            self.rows.add(row)
            self._draw(lambda board: [board.add_scalar(k, v, step) for k, v in row.items() if isinstance(v, float)])
        self.undrawn = self.undrawn.merge(self.seen)
        self._reset()
        return row

    def draw_histogram(self, step: int) -> None:
        """Give TensorBoard a histogram of the cosines of all rows since the last histogram."""
        m, histogram = self.undrawn.moments, self.undrawn.histogram
        if m.number > 0:
            sums = {"sum": float(m.number * m.mean), "sum_squares": float(m.m2 + m.number * m.mean**2)}
            buckets = {"bucket_limits": histogram.edges[1:].tolist(), "bucket_counts": histogram.counts.tolist()}
            facts = {"min": -1.0, "max": 1.0, "num": int(m.number), **sums, **buckets, "global_step": step}
            self._draw(lambda board: board.add_histogram_raw("agreement", **facts))
        self.undrawn = NOTHING

    def close(self) -> None:
        """Flush and close the files."""
        if self.board is not None:
            self._draw(lambda board: board.close(), flush=False)

    def _draw(self, draw: Callable[[SummaryWriter], Any], flush: bool = True) -> None:
        """Write to TensorBoard. Its writer does not survive an error: a new writer begins a new file."""
        try:
            if self.board is None:
                self.board = SummaryWriter(str(self.file.with_name("tensorboard")))
            draw(self.board)
            if flush:
                self.board.flush()
        except OSError as error:
            self.failures += 1
            log.warning("TensorBoard's file cannot be written (%s): a part of the curves is missing there", error)
            with suppress(OSError):
                if self.board is not None:
                    self.board.close()
            self.board = None

    def _reset(self) -> None:
        self.steps = 0
        self.sums: dict[str, tuple[float, int]] = {}
        self.seen = NOTHING


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics."""
    return jsonl.read_rows(folder / "metrics.jsonl", step=int)


def finite(value: Tensor) -> float | None:
    """A number for JSON, which has no NaN: None for it."""
    number = float(value)
    return number if math.isfinite(number) else None
