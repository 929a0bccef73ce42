"""A workload: an encoder, its losses and random batches, at one point of a sweep."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Batch = dict[str, Tensor]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class WorkloadError(ValueError):
    """A workload that cannot be built: a size that does not fit, or a package that is not installed."""


@dataclass(frozen=True)
class Spec:
    """One point of a sweep, named as the keys of the suite; all of it fits into JSON.

    `tokens` are those of the longest sequence. If `compiled`, the encoder goes through `torch.compile`.
    """

    workload: str = "reference"
    batch: int = 32
    tokens: int = 128
    width: int = 256
    layers: int = 4
    heads: int = 4
    losses: int = 2
    symmetric: bool = False
    device: str = "cpu"
    dtype: str = "float32"
    compiled: bool = False
    chunk: int = 8

    @property
    def point(self) -> "Spec":
        """The spec without what tells apart contestants of one point."""
        return replace(self, compiled=False)


class Workload:
    """A model on its device, called by all contestants in the same way.

    Attributes:
        model: The encoder, called as ``model(**batch)``; returns a dictionary of embeddings.
        objective: The losses stage with its heads; embeddings -> {name: terms (B,)}.
        draw: Number of samples -> a fresh random batch, a dictionary of tensors with leading axis B.
        wrt: Names of the parameters the Gram is taken over, those of the part ``watched``; None for all.
        parts: Smaller parts that a Gram may be taken over instead, by name; what their parameters' names begin with.
        params, loss_params: Trainable parameters of the encoder, and of the losses stage, by name.
    """

    def __init__(
        self,
        spec: Spec,
        model: nn.Module,
        objective: nn.Module,
        draw: Callable[[int], Batch],
        watched: str = "",
        parts: dict[str, str] | None = None,
    ) -> None:
        self.spec = spec
        self.model = model.to(spec.device)
        self.objective = objective.to(spec.device)
        self.draw = lambda size: {name: x.to(spec.device) for name, x in draw(size).items()}
        self.watched = watched
        self.wrt = _begins(f"{watched}.") if watched else None
        self.parts = parts or {}
        self.params = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.loss_params = dict(objective.named_parameters())
        self.forward, self.encode = self._forward, self._encode
        if spec.compiled:
            torch.compiler.reset()  # what was compiled for another size counts towards a limit
            self.forward = torch.compile(self._forward, dynamic=False)
            self.encode = torch.compile(self._encode, dynamic=False)

    def selects(self, part: str | None) -> Callable[[str], bool] | None:
        """What the Gram is taken over: one of ``parts``, or ``wrt`` for None; a WorkloadError for an unknown part."""
        if part is None:
            return self.wrt
        if part not in self.parts:
            raise WorkloadError(f"the {self.spec.workload} workload does not name its {part}")
        return _begins(self.parts[part])

    def precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.spec.device, DTYPES[self.spec.dtype], enabled=self.spec.dtype != "float32")

    def _forward(self, batch: Batch) -> dict[str, Tensor]:
        with self.precision():
            return self.model(**batch)

    def _encode(self, params: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        with self.precision():
            return functional_call(self.model, params, kwargs=batch)

    def losses(self, loss_params: dict[str, Tensor], embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses stage as a pure function."""
        with self.precision():
            return functional_call(self.objective, loss_params, (embeddings,))

    def total(self, embeddings: dict[str, Tensor]) -> Tensor:
        """The sum of the mean losses, as plain training minimises it."""
        with self.precision():
            terms = self.objective(embeddings)
        return torch.stack([term.mean() for term in terms.values()]).sum()


def _begins(prefix: str) -> Callable[[str], bool]:
    return lambda name: name.startswith(prefix)
