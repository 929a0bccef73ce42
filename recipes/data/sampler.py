"""The order of training: which clips make the batch of which step, as a pure function of seed and position.

Position p of an endless order belongs to step p // batch_size, whatever the number of processes and workers, and
wherever a run was resumed. Epochs follow each other without a gap: a batch may hold the end of one and the beginning of
the next, and then a clip may be in it twice.
"""

from collections.abc import Iterator
from itertools import count

import numpy as np
from torch.utils.data import Sampler

Key = tuple[int, int]  # (epoch, index)


class BatchSampler(Sampler[list[Key]]):
    """Endless batches of (epoch, index) keys; each epoch is a new permutation, in which each clip comes once."""

    def __init__(self, n: int, batch_size: int, seed: int, start_step: int = 0, rank: int = 0, world: int = 1):
        """
        Args:
            n: how many clips there are.
            batch_size: clips per batch, of all processes together; n where there are fewer.
            seed: of the order.
            start_step: the first step; the batches from there are those of a run that began at 0.
            rank, world: this process, and how many share each batch; each has its slice of it, in order.
        """
        if n < 1 or batch_size < 1 or start_step < 0:
            raise ValueError(f"expected n >= 1, batch_size >= 1, start_step >= 0; got {n}, {batch_size}, {start_step}")
        if not 0 <= rank < world:
            raise ValueError(f"expected 0 <= rank < world; got {rank}, {world}")
        self.n, self.batch_size, self.seed, self.start_step = n, min(n, batch_size), seed, start_step
        self.first, self.stop = rank * self.batch_size // world, (rank + 1) * self.batch_size // world
        self.epoch, self.order = -1, np.empty(0, np.int64)

    def __iter__(self) -> Iterator[list[Key]]:
        for step in count(self.start_step):
            start = step * self.batch_size
            yield [self._key(position) for position in range(start + self.first, start + self.stop)]

    def _key(self, position: int) -> Key:
        epoch, place = divmod(position, self.n)
        if epoch != self.epoch:  # one permutation is remembered
            self.epoch, self.order = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.n)
        return epoch, int(self.order[place])
