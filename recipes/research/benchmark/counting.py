"""How many calls a step makes to the device: what it costs where each is short and the host is slow."""

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from torch.utils._python_dispatch import TorchDispatchMode

EMPTY = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")  # memory, with nothing in it yet
NO_WORK = ("_unsafe_view", "lift_fresh", *EMPTY)  # beside the views, which say so


def calls(call: Callable[[], Any], device: str) -> int | None:
    """Kernels that a call launches on CUDA, elsewhere ops of ATen that are no views; None where none is seen.

    The fewer of two calls count, as one of them may verify itself.
    """
    count = _launches if device == "cuda" else _ops
    return min(count(call) for _ in range(2)) or None


def _launches(call: Callable[[], Any]) -> int:
    with torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    return sum(event.count for event in profiler.key_averages() if "LaunchKernel" in event.key)


def _ops(call: Callable[[], Any]) -> int:
    with _Ops() as mode:
        call()
    return mode.number


class _Ops(TorchDispatchMode):
    number = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += not op.is_view and op.overloadpacket.__name__ not in NO_WORK
        return op(*args, **(kwargs or {}))
