"""What a run writes down while it trains: metrics, the clips it could not read, and the progress bar."""

import time

from recipes.config import Config
from recipes.data.clips import Skipped
from recipes.progress import progress_bar
from recipes.training.metrics import Metrics
from recipes.training.skipped import SkippedClips
from recipes.training.step import StepResult


class Journal:
    """The first process's; in the others it writes nothing."""

    def __init__(self, config: Config, step: int, writes: bool) -> None:
        """Continue the journal of a run at a step."""
        self.metrics = Metrics(config.folder, step) if writes else None
        self.skipped = SkippedClips(config.folder) if writes else None
        self.bar = progress_bar(
            total=config.train.steps, initial=step, desc=config.run.name, unit="step", smoothing=0.05,
            disable=not writes,
        )  # fmt: skip
        self.began, self.seen = time.monotonic(), 0

    @property
    def throughput(self) -> float:
        """Clips a second, of all processes, since this one began."""
        return self.seen / (time.monotonic() - self.began)

    def skip(self, clips: list[Skipped]) -> int:
        """Note the clips of a batch that could not be read; returns how many different ones there were so far."""
        if self.skipped is None:
            return 0
        self.skipped.record(clips)
        return len(self.skipped.known)

    def add(self, found: StepResult, clips: int) -> None:
        """Note a step, and how many clips it was of."""
        self.seen += clips
        if self.metrics is not None:
            self.metrics.add(found.values, found.cosines, found.defined)
            self.bar.update()
            self.bar.set_postfix(found.shown(self.throughput), refresh=False)

    def write(self, step: int, **facts: float) -> None:
        """Write the row of the interval that ends at a step."""
        if self.metrics is not None:
            self.metrics.write(step, samples_per_second=self.throughput, **facts)

    def draw(self, step: int) -> None:
        """Give TensorBoard the histogram of the cosines since the last one."""
        if self.metrics is not None:
            self.metrics.draw_histogram(step)

    def close(self) -> None:
        """Flush and close the files."""
        if self.metrics is not None:
            self.metrics.close()
