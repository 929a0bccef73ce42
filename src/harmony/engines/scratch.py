"""Memory that step after step uses again."""

import contextlib
import threading
import weakref
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

ALIGNED = 64  # bytes


class Scratch:
    """Memory on the host for gradients that are used and forgotten.

    Memory that a step gets anew costs a page fault for every 4 KiB. A GPU's allocator keeps what is freed by itself.
    """

    def __init__(self, size: int) -> None:
        self.flat = torch.empty(size, dtype=torch.uint8, device="cpu")  # the pages that are written to count, no others
        self.used = 0

    def reset(self) -> None:
        """Forget all that was taken."""
        self.used = 0

    def take(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor of the given shape, its entries undefined; fresh where there is no room."""
        size = torch.Size(shape).numel() * dtype.itemsize
        start = self.used
        if device.type != "cpu" or start + size > len(self.flat):
            return torch.empty(shape, dtype=dtype, device=device)
        self.used += -(-size // ALIGNED) * ALIGNED
        return self.flat[start : start + size].view(dtype).view(*shape)


_LOCAL = threading.local()
_ALL: "weakref.WeakSet[Scratch]" = weakref.WeakSet()


@contextlib.contextmanager
def borrowed(size: int) -> Iterator[Scratch]:
    """The memory of this thread, of so many bytes; fresh memory for calls within calls."""
    own: Scratch | None = getattr(_LOCAL, "scratch", None)
    if own is None or len(own.flat) != size:
        with torch.inference_mode(False):
            own = Scratch(size)
        _ALL.add(own)
    own.reset()
    _LOCAL.scratch = Scratch(0)
    try:
        yield own
    finally:
        _LOCAL.scratch = own


def release_memory() -> None:
    """Give back the memory on the host that the steps of all threads reuse: at most ``Engine.memory`` bytes each.

    The next step takes it anew.

    Examples:
        >>> harmony.release_memory()
    """
    for own in list(_ALL):
        own.flat = own.flat.new_empty(0)
