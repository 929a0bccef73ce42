"""The order of training: which clips make the batch of which step, as a pure function of seed and step."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

Key = tuple[int, int]  # (epoch, index)


class EpochBatchSampler(Sampler[list[Key]]):
    """Endless batches of (epoch, index) keys; each epoch is a new permutation.

    An epoch has n // batch_size batches. What is left over, fewer than a batch and other clips each epoch, waits for
    another epoch: so no clip is twice in a batch. With n < batch_size a batch is all n clips.
    """

    def __init__(self, n: int, batch_size: int, seed: int, start_step: int = 0, rank: int = 0, world: int = 1):
        """
        Args:
            n: how many clips there are.
            batch_size: clips per batch.
            seed: of the order.
            start_step: the first step; the batches from there are those of a run that began at 0.
            rank, world: this process, and how many share each batch; each has its slice of it, in order.
        """
        if n < 1 or batch_size < 1 or start_step < 0:
            raise ValueError(f"expected n >= 1, batch_size >= 1, start_step >= 0; got {n}, {batch_size}, {start_step}")
        self.n, self.batch_size, self.seed, self.start_step = n, min(n, batch_size), seed, start_step
        self.slice = slice(rank * self.batch_size // world, (rank + 1) * self.batch_size // world)

    def __iter__(self) -> Iterator[list[Key]]:
        batches = self.n // self.batch_size
        epoch, position = divmod(self.start_step, batches)
        while True:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.n)
            for batch in order[: batches * self.batch_size].reshape(batches, -1)[position:]:
                yield [(epoch, int(index)) for index in batch[self.slice]]
            epoch, position = epoch + 1, 0
