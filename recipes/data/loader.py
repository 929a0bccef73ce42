"""Loaders: clips in the order of training or of an index, in batches."""

from collections.abc import Iterable, Sequence
from typing import Any

from recipes.data.clips import Clip, EvalClips, NarratedClips, Skipped, TrainClips, collate
from recipes.data.sampler import BatchSampler, Key, Source
from recipes.data.workers import Loader

TIMEOUT = 60.0  # seconds for a clip


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
) -> Loader[dict[str, Any]]:
    """Endless batches for training, from any step on; the same whatever the number of workers and processes.

    Args:
        dataset: the clips.
        batch_size: clips per batch of all processes together, before any is skipped.
        seed: of the order.
        workers: processes that decode; 0 decodes in this one, without a guard against clips that hang.
        start_step: the step to begin at.
        sources: what the dataset is put together of, one after the other; None: it is one source.
        rank, world: this process, and how many share each batch.
        timeout: seconds that a worker may take for one clip.
    Returns:
        A loader of what `collate` returns.
    """
    sampler = BatchSampler(sources or [Source(len(dataset))], batch_size, seed, start_step, rank, world)
    return Loader(dataset, sampler, collate, workers, timeout)


def eval_loader(
    dataset: EvalClips, batch_size: int, workers: int, timeout: float = TIMEOUT, limit: int | None = None
) -> Loader[dict[str, Any]]:
    """Every clip once, or the first `limit` of them, in order: see `train_loader`."""
    keys = range(len(dataset))[:limit]
    batches = [keys[first : first + batch_size] for first in range(0, len(keys), batch_size)]
    return Loader(dataset, batches, collate, workers, timeout)


def list_loader(
    dataset: NarratedClips, batches: Iterable[list[Key]], workers: int, timeout: float = TIMEOUT
) -> Loader[list[Clip | Skipped]]:
    """Lists of clips, not joined: see `train_loader`."""
    return Loader(dataset, batches, list, workers, timeout)
