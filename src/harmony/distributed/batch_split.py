"""How a batch is split over processes, and what they send to one another.

The batch is the samples of all processes in order of their rank; processes may hold different numbers of them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils import _pytree as pytree

from harmony.distributed.sharded import is_sharded, scatter

PyTree = Any
BUCKET = 64 * 2**20
"""Bytes of gradients that are sent at once."""


class BatchSplit(NamedTuple):
    """How a batch is split over processes.

    Attributes:
        process_group: The processes; None for this one alone.
        rank: This process's place among them.
        sizes: Number of samples of each.
    """

    process_group: Any
    rank: int
    sizes: tuple[int, ...]

    @property
    def size(self) -> int:
        """B, the number of samples of all."""
        return sum(self.sizes)

    @property
    def own(self) -> slice:
        """This process's samples in the batch."""
        start = sum(self.sizes[: self.rank])
        return slice(start, start + self.sizes[self.rank])

    def groups(self, group_size: int) -> "BatchSplit":
        """How the groups of so many samples are split; none of them reaches over two processes."""
        return self._replace(sizes=tuple(-(-size // group_size) for size in self.sizes))

    def members(self, group_size: int, device: torch.device) -> Tensor:
        """The number (B,) of each sample's group in the batch."""
        if len(self.sizes) == 1:
            return torch.arange(self.size, device=device) // group_size
        members: list[int] = []
        for size in self.sizes:
            first = members[-1] + 1 if members else 0
            members += [first + sample // group_size for sample in range(size)]
        return torch.tensor(members, device=device)

    def gather(self, x: Tensor) -> Tensor:
        """Rows (B, ...) of all processes, for the rows (b, ...) of this one; no gradient passes."""
        return x if self.process_group is None else gather_rows(x.detach(), self)

    def gather_tree(self, tree: PyTree) -> PyTree:
        """``gather`` for every tensor of a tree that has rows."""
        return pytree.tree_map(lambda x: self.gather(x) if isinstance(x, Tensor) and x.ndim else x, tree)

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sums over the processes, tensor by tensor; the same on each of them to the last bit."""
        return list(tensors) if self.process_group is None else all_sum(tensors, self.process_group)

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """Flag by flag, whether it is set on any process; the host waits for it."""
        if self.process_group is None:
            return list(flags)
        votes = torch.tensor(flags, dtype=torch.int32, device=_host_device(self.process_group))
        dist.all_reduce(votes, dist.ReduceOp.MAX, group=self.process_group)
        return [bool(vote) for vote in votes.tolist()]

    def sum_like(self, grads: Sequence[Tensor], params: Sequence[Tensor]) -> list[Tensor]:
        """Sums of gradients over the processes, each sharded as its parameter is."""
        pairs = list(zip(grads, params, strict=True))
        sums = iter(self.sum([g for g, p in pairs if not is_sharded(p)]))
        return [scatter(g, p) if is_sharded(p) else next(sums) for g, p in pairs]

    def agree(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What the first process has, where all have computed the same up to rounding."""
        if self.process_group is None:
            return list(tensors)
        agreed = [t.contiguous().clone() for t in tensors]
        for t in agreed:
            dist.broadcast(t, group=self.process_group, group_src=0)
        return agreed


def alone(size: int) -> BatchSplit:
    """A batch that this process has for itself."""
    return BatchSplit(None, 0, (size,))


def split_batch(size: int, process_group: Any = None) -> BatchSplit:
    """Exchange the numbers of samples with the other processes.

    No device is waited for where the group can send tensors of the CPU: gloo can, which a group has unless it was made
    for NCCL alone.
    """
    if process_group is None:
        return alone(size)
    own = torch.tensor([size], device=_host_device(process_group))
    counts = own.new_empty(dist.get_world_size(process_group))
    dist.all_gather(list(torch.split(counts, 1)), own, group=process_group)
    return BatchSplit(process_group, dist.get_rank(process_group), tuple(counts.tolist()))


def gather_rows(x: Tensor, split: BatchSplit) -> Tensor:
    """Rows of all; a process with fewer than the others sends zeros in their place, which nobody keeps."""
    most = max(split.sizes)
    kind = torch.uint8 if x.dtype == torch.bool else x.dtype
    sent = torch.zeros(most, *x.shape[1:], dtype=kind, device=x.device)
    sent[: len(x)] = x
    parts = [torch.empty_like(sent) for _ in split.sizes]
    dist.all_gather(parts, sent, group=split.process_group)
    return torch.cat([part[:size] for part, size in zip(parts, split.sizes, strict=True)]).to(x.dtype)


def all_sum(tensors: Sequence[Tensor], process_group: Any) -> list[Tensor]:
    """Sums over the processes, several tensors of a kind at a time."""
    sums = list(tensors)
    for bucket in _buckets(tensors):
        flat = torch.cat([tensors[i].reshape(-1) for i in bucket])
        dist.all_reduce(flat, group=process_group)
        for i, part in zip(bucket, torch.split(flat, [tensors[i].numel() for i in bucket]), strict=True):
            sums[i] = part.view(tensors[i].shape)
    return sums


def _buckets(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Numbers of the tensors, in runs of one dtype and device that hold no more than ``BUCKET`` bytes or are alone."""
    buckets: list[list[int]] = []
    kind, room = None, 0
    for i, t in enumerate(tensors):
        if kind != (t.dtype, t.device) or t.nbytes > room:
            buckets.append([])
            kind, room = (t.dtype, t.device), BUCKET
        buckets[-1].append(i)
        room -= t.nbytes
    return buckets


def _host_device(process_group: Any) -> torch.device:
    """Where the group sends a few numbers from: the host if it can."""
    backend = dist.get_backend_config(process_group)
    return torch.device("cpu" if "cpu:" in backend or "gloo" in backend else "cuda")
