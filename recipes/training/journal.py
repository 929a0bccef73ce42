"""What a run writes down while it trains: metrics, the clips it could not read, and the progress bar."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import torch

from recipes.data.skipped import Skipped, SkippedClips
from recipes.progress import progress_bar
from recipes.training.metrics import Metrics
from recipes.training.step import StepResult

T = TypeVar("T")


class Clock:
    """How long the steps since the last row waited for clips, and how long they took."""

    def __init__(self) -> None:
        self.waited = self.stepped = 0.0
        self.steps = self.clips = 0
        self._began = time.perf_counter()

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """Batches; counts the time of waiting for each."""
        source = iter(batches)
        while True:
            began = time.perf_counter()
            try:
                batch = next(source)
            except StopIteration:
                return
            self._began = time.perf_counter()
            self.waited += self._began - began
            yield batch

    def step(self, clips: int) -> None:
        """Count the end of a step of so many clips."""
        self.stepped += time.perf_counter() - self._began
        self.steps, self.clips = self.steps + 1, self.clips + clips

    @property
    def throughput(self) -> float:
        """Clips a second, of all processes; logging and checkpoints do not count."""
        return self.clips / max(self.waited + self.stepped, 1e-9)

    def row(self) -> dict[str, float]:
        """Throughput, and seconds of a step, since the last call."""
        steps = max(self.steps, 1)
        rates = {"samples_per_second": self.throughput}
        rates |= {"data_seconds": self.waited / steps, "step_seconds": self.stepped / steps}
        self.waited = self.stepped = 0.0
        self.steps = self.clips = 0
        return rates


class Journal:
    """Metrics, skipped clips and progress bar; only the first process writes."""

    def __init__(self, folder: Path, steps: int, step: int, writes: bool, device: torch.device) -> None:
        """Continue the journal of a run at a step; ``steps`` is its length."""
        self.metrics = Metrics(folder, step) if writes else None
        self.skipped = SkippedClips(folder) if writes else None
        bar = {"total": steps, "initial": step, "desc": folder.name, "unit": "step", "smoothing": 0.05}
        self.bar = progress_bar(**bar, disable=not writes)
        self.clock, self.device = Clock(), device

    @property
    def failures(self) -> int:
        """How often something could not be written, by this process."""
        if self.metrics is None or self.skipped is None:
            return 0
        return self.metrics.failures + self.metrics.rows.failures + self.skipped.rows.failures

    def skip(self, clips: list[Skipped]) -> int:
        """Note the clips of a batch that could not be read; returns how many different ones there were so far."""
        if self.skipped is None:
            return 0
        self.skipped.record(clips)
        return len(self.skipped.known)

    def add(self, result: StepResult, clips: int) -> None:
        """Note a step, and how many clips it was of."""
        self.clock.step(clips)
        if self.metrics is not None:
            self.metrics.add(result.values, result.cosines, result.defined)
            self.bar.update()
            self.bar.set_postfix(result.shown(self.clock.throughput), refresh=False)

    def write(self, step: int, **facts: float) -> None:
        """Write the row of the interval that ends at a step."""
        if self.metrics is not None:
            self.metrics.write(step, **self.clock.row(), **peak_memory(self.device), **facts)

    def draw(self, step: int) -> None:
        """Give TensorBoard the histogram of the cosines since the last one."""
        if self.metrics is not None:
            self.metrics.draw_histogram(step)

    def close(self) -> None:
        """Flush and close the files."""
        if self.metrics is not None:
            self.metrics.close()


def peak_memory(device: torch.device) -> dict[str, float]:
    """Peak memory of the tensors of this process on its GPU so far, GiB; {} without a GPU."""
    return {"gpu_memory_gib": torch.cuda.max_memory_allocated(device) / 2**30} if device.type == "cuda" else {}
