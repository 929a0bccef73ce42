"""Loaders: clips read by worker processes, in the order of training or of an index, in batches."""

import signal
from collections.abc import Iterable, Sequence
from multiprocessing import get_context
from typing import Any

import torch
from torch.utils.data import DataLoader

from recipes.data.clips import Clip, EvalClips, NarratedClips, Skipped, TrainClips, collate
from recipes.data.sampler import BatchSampler, Key, Source


def train_loader(
    dataset: TrainClips,
    batch_size: int,
    seed: int,
    workers: int,
    start_step: int = 0,
    sources: Sequence[Source] | None = None,
    rank: int = 0,
    world: int = 1,
) -> DataLoader[dict[str, Any]]:
    """Endless batches for training, from any step on; the same whatever the number of workers and processes.

    Args:
        dataset: the clips.
        batch_size: clips per batch of all processes together, before any is skipped.
        seed: of the order.
        workers: processes that decode; 0 decodes in this one.
        start_step: the step to begin at.
        sources: what the dataset is put together of, one after the other; None: it is one source.
        rank, world: this process, and how many share each batch.
    Returns:
        A loader of what `collate` returns.
    """
    sampler = BatchSampler(sources or [Source(len(dataset))], batch_size, seed, start_step, rank, world)
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, **_workers(workers))


def eval_loader(dataset: EvalClips, batch_size: int, workers: int) -> DataLoader[dict[str, Any]]:
    """Every clip once, in order: see `train_loader`."""
    return DataLoader(dataset, batch_size=batch_size, collate_fn=collate, **_workers(workers))


def list_loader(dataset: NarratedClips, batches: Iterable[list[Key]], workers: int) -> DataLoader[list[Clip | Skipped]]:
    """Lists of clips, not joined: see `train_loader`."""
    return DataLoader(dataset, batch_sampler=batches, collate_fn=list, **_workers(workers))


def _workers(count: int) -> dict[str, Any]:
    """Workers are forked from a clean process with the imports done: forking this one, with its threads, can hang."""
    # A generator of its own: the loader's seeds, unused here, must not be drawn from the model's random state.
    generator = torch.Generator()
    if not count:
        return {"num_workers": 0, "generator": generator}
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return {
        "num_workers": count,
        "generator": generator,
        "multiprocessing_context": context,
        "persistent_workers": True,
        "prefetch_factor": 4,
        "worker_init_fn": _ignore_interrupt,
    }


def _ignore_interrupt(_: int) -> None:
    """Ctrl-C reaches the whole process group; the main process decides when to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
