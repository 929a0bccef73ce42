"""A moving average of the weights beside training, which is what is evaluated in the end."""

import torch
from torch import Tensor, nn

from recipes.training.processes import local

PREFIX = "ema."


class Ema:
    """Averages of the trainable parameters: after each step ``average += (1 - decay) (weights - average)``.

    What is not trained (running statistics, frozen word vectors) is taken from the model as it is.
    """

    def __init__(self, modules: nn.Module, decay: float) -> None:
        self.modules, self.decay = modules, decay
        self.averages = {n: p.detach().clone() for n, p in _trainable(modules).items()}

    def update(self) -> None:
        """Follow a step that was taken."""
        with torch.no_grad():
            weights = [local(p) for p in _trainable(self.modules).values()]
            torch._foreach_lerp_([local(a) for a in self.averages.values()], weights, 1 - self.decay)

    def tensors(self) -> dict[str, Tensor]:
        """The averages themselves, to be saved and filled: {"ema.<parameter>": average}."""
        return {PREFIX + name: average for name, average in self.averages.items()}

    def swap(self) -> None:
        """Exchange the weights of the model and their averages; once more puts both back."""
        with torch.no_grad():
            for name, p in _trainable(self.modules).items():
                weights = p.clone()
                p.copy_(self.averages[name])
                self.averages[name].copy_(weights)


def _trainable(modules: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in modules.named_parameters() if p.requires_grad}
