"""Loaders: clips in the order of training or of an index, in batches."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from recipes.data.clips import Clip, NarratedClips, Skipped, TrainClips, collate, collate_windows
from recipes.data.sampler import BatchSampler, Key, Source
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
    """Endless batches for training, from any step on; the same whatever the number of workers and processes.

    Args:
        dataset: the clips.
        batch_size: clips per batch of all processes together, before any is skipped.
        seed: of the order.
        workers: processes that decode.
        start_step: the step to begin at.
        sources: what the dataset is put together of, one after the other; None: it is one source.
        rank, world: this process, and how many share each batch.
        timeout, prefetch: see `Loader`.
    Returns:
        A loader of what `collate` returns.
    """
    sampler = BatchSampler(sources or [Source(len(dataset))], batch_size, seed, start_step, rank, world)
    return Loader(dataset, sampler, collate, workers, timeout, prefetch)


def eval_loader(
    dataset: NarratedClips, batches: Iterable[Sequence[int]], workers: int, timeout: float = TIMEOUT,
    prefetch: float = PREFETCH,
) -> Loader[dict[str, Any]]:  # fmt: skip
    """Batches of clips, each with all of its windows.

    Args:
        dataset: the clips.
        batches: the clips of each batch.
        workers, timeout, prefetch: see `Loader`.
    Returns:
        A loader of what `collate_windows` returns.
    """
    keys = ([(clip, window) for clip in batch for window in range(dataset.windows)] for batch in batches)
    return Loader(dataset, keys, partial(collate_windows, windows=dataset.windows), workers, timeout, prefetch)


def list_loader(
    dataset: NarratedClips, batches: Iterable[list[Key]], workers: int, timeout: float = TIMEOUT,
    prefetch: float = PREFETCH,
) -> Loader[list[Clip | Skipped]]:  # fmt: skip
    """Lists of clips, not joined: see `train_loader`."""
    return Loader(dataset, batches, list, workers, timeout, prefetch)
