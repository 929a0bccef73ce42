"""The encoder in lower precision: autocast, loss scaling, TF32."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recipes.config import TrainConfig
from recipes.training.processes import local

Forward = Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]]

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
GROW_AFTER = 2000  # steps without an overflow, as torch.amp.GradScaler has it


def forward_in(precision: str, device: torch.device) -> Forward:
    """A function that calls the model in a precision of `train.precision` and gives its embeddings in float32.

    Heads and losses stay in float32: half precision loses differences of cosines over a temperature of 0.07. Autocast
    ends with the encoder: its cache of weights must not pass from a forward pass without a graph to one that needs it.
    """
    dtype = AUTOCAST.get(precision)

    def forward(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        if dtype is None:
            return model(**inputs)
        with torch.autocast(device.type, dtype=dtype):
            embeddings = model(**inputs)
        return {name: x.float() if x.dtype == dtype else x for name, x in embeddings.items()}

    return forward


@dataclass
class LossScale:
    """A factor on the losses, so that gradients in float16 do not vanish; halved when a gradient overflows.

    The rule is that of `torch.amp.GradScaler`, but the step decides for all processes, by the norm of the gradient.
    """

    value: float = 2.0**16
    good_steps: int = 0

    def tensor(self, device: torch.device) -> Tensor:
        """The factor as a tensor without axes."""
        return torch.tensor(self.value, device=device)

    def unscale(self, parameters: Iterable[Tensor]) -> None:
        """Divide gradients by the factor."""
        torch._foreach_div_([local(p.grad) for p in parameters if p.grad is not None], self.value)

    def update(self, finite: bool) -> None:
        """Adapt the factor to whether the gradient of a step was finite."""
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.value /= 2
        elif self.good_steps % GROW_AFTER == 0:
            self.value *= 2


def loss_scale(config: TrainConfig, state: dict[str, Any] | None = None) -> LossScale | None:
    """The loss scale of float16, new or from a checkpoint; None in other precisions, which need none."""
    return LossScale(**(state or {})) if config.precision == "fp16" else None


def use_tf32(config: TrainConfig) -> None:
    """Choose whether CUDA multiplies float32 matrices in TF32."""
    torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
