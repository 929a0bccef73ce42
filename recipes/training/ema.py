"""A moving average of the weights, which is evaluated in place of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from recipes.training.processes import local

PREFIX = "ema."
UPDATES = "ema_updates"


class Ema:
    """Averages of the trainable parameters and of the floating-point buffers, such as running statistics.

    After ``t`` updates ``average += (1 - d) (value - average)``, with ``d = min(decay, (1 + t) / (10 + t))``: the first
    steps are soon forgotten.
    """

    def __init__(self, modules: nn.Module, decay: float) -> None:
        self.modules, self.decay = modules, decay
        self.averages = {name: t.detach().clone() for name, t in _averaged(modules).items()}
        self.updates = torch.zeros((), dtype=torch.int64)

    def update(self) -> None:
        """Move the averages after a step."""
        t = int(self.updates)
        decay = min(self.decay, (1 + t) / (10 + t))
        with torch.no_grad():
            values = [local(value) for value in _averaged(self.modules).values()]
            torch._foreach_lerp_([local(a) for a in self.averages.values()], values, 1 - decay)
        self.updates += 1

    def tensors(self) -> dict[str, Tensor]:
        """For checkpoints: {"ema.<name>": average} and the number of updates."""
        return {PREFIX + name: average for name, average in self.averages.items()} | {UPDATES: self.updates}

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the values of the model are the averages."""
        self.swap()
        yield
        self.swap()

    def swap(self) -> None:
        """Exchange the values of the model and their averages; a second call undoes that."""
        with torch.no_grad():
            for name, value in _averaged(self.modules).items():
                kept = value.clone()
                value.copy_(self.averages[name])
                self.averages[name].copy_(kept)


def _averaged(modules: nn.Module) -> dict[str, Tensor]:
    saved = modules.state_dict().keys()  # without buffers that are constants
    buffers = {n: b for n, b in modules.named_buffers() if n in saved and b.is_floating_point()}
    return {n: p for n, p in modules.named_parameters() if p.requires_grad} | buffers
