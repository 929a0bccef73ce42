"""Replay of the random state, so that a chunk that is encoded twice draws the same dropout masks."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class RandomState(NamedTuple):
    """State of the CPU generator and of each CUDA device's generator in use."""

    cpu: Tensor
    cuda: dict[int, Tensor]

    def equal(self, other: "RandomState") -> bool:
        """Whether nothing was drawn between the two."""
        pairs = [(self.cpu, other.cpu), *((state, other.cuda[d]) for d, state in self.cuda.items())]
        return all(torch.equal(a, b) for a, b in pairs)


def snapshot(tensors: Iterable[Tensor]) -> RandomState:
    """Read the random state of the CPU and of the CUDA devices that hold the given tensors."""
    devices = {t.device.index for t in tensors if t.device.type == "cuda"}
    return RandomState(torch.get_rng_state(), {d: torch.cuda.get_rng_state(d) for d in sorted(devices)})


def restore(state: RandomState) -> None:
    """Set the generators to a state read before."""
    torch.set_rng_state(state.cpu)
    for device, cuda in state.cuda.items():
        torch.cuda.set_rng_state(cuda, device)


@contextlib.contextmanager
def replay(state: RandomState) -> Iterator[None]:
    """Inside, draw what was drawn from ``state`` on; outside, the generators go on undisturbed."""
    with torch.random.fork_rng(devices=list(state.cuda)):
        restore(state)
        yield
