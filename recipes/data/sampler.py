"""The order of training, a pure function of seed and position, whatever the number of processes and workers.

Epochs follow each other without a gap: a batch may hold the end of one and the beginning of the next.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, count
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

Key = tuple[int, int]  # (epoch, index)


class Source(NamedTuple):
    """A part of the data: how many clips it has, and its share of every batch, relative to other sources."""

    size: int
    weight: float = 1.0


class BatchSampler(Sampler[list[Key]]):
    """Endless batches of keys from one or several sources. Each source has an order and epochs of its own."""

    def __init__(
        self,
        sources: Sequence[Source],
        batch_size: int,
        seed: int,
        start_step: int = 0,
        rank: int = 0,
        world: int = 1,
    ):
        """
        Args:
            sources: what the data are put together of; the indices of one follow those of the one before.
            batch_size: clips per batch of all processes together, at most as many as there are.
            start_step: the first step; its batch and all later ones are those of a run from step 0.
            rank, world: this process, and how many share each batch in slices.
        """
        sizes, weights = zip(*sources, strict=True) if sources else ((0,), (1.0,))
        if min(sizes) < 1 or batch_size < 1 or start_step < 0:
            raise ValueError(
                f"expected sizes >= 1, batch_size >= 1, start_step >= 0; got {sizes}, {batch_size}, {start_step}"
            )
        if not all(0 < weight < np.inf for weight in weights):
            raise ValueError(f"expected positive weights; got {weights}")
        if not 0 <= rank < world:
            raise ValueError(f"expected 0 <= rank < world; got {rank}, {world}")
        self.batch_size, self.seed, self.start_step = min(sum(sizes), batch_size), seed, start_step
        self.weights = [weight / sum(weights) for weight in weights]
        firsts = accumulate(sizes[:-1], initial=0)
        self.orders = [_Order(*part, seed, stream) for stream, part in enumerate(zip(firsts, sizes, strict=True))]
        self.slice = slice(rank * self.batch_size // world, (rank + 1) * self.batch_size // world)

    def __iter__(self) -> Iterator[list[Key]]:
        for step in count(self.start_step):
            yield self.batch(step)[self.slice]

    def batch(self, step: int) -> list[Key]:
        """The keys of a step, for all processes."""
        taken = dealt(self.weights, step * self.batch_size)
        keys = []
        for _ in range(self.batch_size):
            source = _next(self.weights, taken)
            keys.append(self.orders[source].key(taken[source]))
            taken[source] += 1
        if len(self.orders) == 1:
            return keys
        mixed = np.random.default_rng([self.seed, step, len(self.orders)]).permutation(len(keys))
        return [keys[slot] for slot in mixed]  # or a process might always get the same source


def dealt(weights: Sequence[float], position: int) -> list[int]:
    """How many of the first `position` clips come from each source by its share (of 1 in all), give or take a few.

    Clip j of a source is due at (j + 1/2) / weight. What is due first comes first; of equals, the earlier source.
    """
    # Never more than the true counts, which lie within K / 2 + 1 of the share: the rest is dealt one by one.
    taken = [max(0, int((position - len(weights)) * weight) - 2) for weight in weights]
    while sum(taken) < position:
        taken[_next(weights, taken)] += 1
    return taken


def _next(weights: Sequence[float], taken: Sequence[int]) -> int:
    return min(range(len(weights)), key=lambda source: (taken[source] + 0.5) / weights[source])


class _Order:
    """The endless order of one source; remembers the permutation of one epoch."""

    def __init__(self, first: int, size: int, seed: int, stream: int):
        self.first, self.size, self.seed, self.stream = first, size, seed, stream
        self.epoch, self.permutation = -1, np.empty(0, np.int64)

    def key(self, position: int) -> Key:
        epoch, place = divmod(position, self.size)
        if epoch != self.epoch:
            self.epoch = epoch
            self.permutation = np.random.default_rng([self.seed, epoch, self.stream]).permutation(self.size)
        return epoch, self.first + int(self.permutation[place])
