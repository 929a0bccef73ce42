"""How many calls a step makes to the device: what it costs where each is short and the host is slow."""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity
from torch.utils._python_dispatch import TorchDispatchMode

EMPTY = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")  # memory, with nothing in it yet
NO_WORK = ("_unsafe_view", "lift_fresh", *EMPTY)  # beside the views, which say so


def calls(call: Callable[[], Any], device: str, tries: int = 2) -> int | None:
    """Kernels that a call launches on CUDA, elsewhere ops of ATen that are no views; None where none is seen.

    The fewest of some tries count, as one step in a few verifies itself.
    """
    count = _launches if device == "cuda" else _ops
    return min(count(call) for _ in range(tries)) or None


def _launches(call: Callable[[], Any]) -> int:
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as profiler:  # and no ops, which are many more
        call()
        torch.cuda.synchronize()
    events = profiler.key_averages()
    launches = [event for event in events if event.key.startswith("cu") and "Launch" in event.key]
    kernels = [event for event in events if event.device_type == DeviceType.CUDA and event.key[:3] != "Mem"]
    return sum(event.count for event in launches or kernels)  # where calls of the driver are not recorded, kernels are


def _ops(call: Callable[[], Any]) -> int:
    with _Ops() as mode:
        call()
    return mode.number


class _Ops(TorchDispatchMode):
    number = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += not op.is_view and op.overloadpacket.__name__ not in NO_WORK
        return op(*args, **(kwargs or {}))
