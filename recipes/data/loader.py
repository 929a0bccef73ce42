"""Loaders: clips in the order of training or of an index, in batches."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from recipes.data.clips import NarratedClips, TrainClips, collate, collate_windows
from recipes.data.sampler import BatchSampler, Source
from recipes.data.workers import PREFETCH, TIMEOUT, Loader


def train_loader(
    dataset: TrainClips,
    batch_size: int,
    seed: int,
    workers: int,
    start_step: int = 0,
    sources: Sequence[Source] | None = None,
    rank: int = 0,
    world: int = 1,
    timeout: float = TIMEOUT,
    prefetch: float = PREFETCH,
) -> Loader[dict[str, Any]]:
    """Endless batches for training, as `collate` makes them; `sources` (None: one) are the parts of the dataset."""
    sampler = BatchSampler(sources or [Source(len(dataset))], batch_size, seed, start_step, rank, world)
    return Loader(dataset, sampler, collate, workers, timeout, prefetch)


def eval_loader(
    dataset: NarratedClips,
    batches: Iterable[Sequence[int]],
    workers: int,
    timeout: float = TIMEOUT,
    prefetch: float = PREFETCH,
) -> Loader[dict[str, Any]]:
    """Batches of the clips that `batches` number, each with all of its windows, as `collate_windows` makes them."""
    keys = ([(clip, window) for clip in batch for window in range(dataset.windows)] for batch in batches)
    return Loader(dataset, keys, partial(collate_windows, windows=dataset.windows), workers, timeout, prefetch)
