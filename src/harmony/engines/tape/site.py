"""One output and one input of an op of the graph, as the rules see them."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from harmony.engines.tape import autograd_fields as fields
from harmony.engines.tape.layout import Place, row_ids
from harmony.engines.tape.sample_block import SampleBlock, grouped


@dataclass(frozen=True)
class Geometry:
    """Shapes at an op, and where the samples lie in one of its outputs: the same for every batch of these shapes."""

    op: str  # such as AddmmBackward0
    number: int  # of the output
    place: Place  # of the samples in the output
    outputs: Sequence[torch.Size]  # shapes of all outputs
    inputs: Sequence[torch.Size | None]  # shapes of all inputs; None for those without a gradient
    size: int  # B
    slot: int  # number of the input
    dtype: torch.dtype  # of the output
    device: torch.device

    @property
    def output(self) -> torch.Size:
        return self.outputs[self.number]

    @property
    def input(self) -> torch.Size:
        shape = self.inputs[self.slot]
        assert shape is not None
        return shape

    @property
    def ids(self) -> Tensor:
        """The sample (rows,) that each row along the sample axis of the output belongs to."""
        return row_ids(self.place, self.output[self.place.axis], self.size)

    def grouped(self, x: Tensor, block: SampleBlock) -> Tensor:
        """Groups first, of a tensor that broadcasts against the output: (g, size, *one sample)."""
        return grouped(x if x.shape == self.output else x.expand(self.output), self.place, block)


@dataclass(frozen=True)
class Site(Geometry):
    """An op of one batch at hand: its geometry, and what autograd has saved with it."""

    node: Node
    read: dict[str, Any]  # what was read of it, by name

    @property
    def geometry(self) -> Geometry:
        """What may be remembered: without the op, which holds the tensors of this batch."""
        return Geometry(*(getattr(self, field.name) for field in dataclasses.fields(Geometry)))

    def saved(self, name: str) -> Any:
        """A tensor or an option that autograd has saved with the op, read once."""
        if name not in self.read:
            self.read[name] = fields.saved(self.node, name)
        return self.read[name]

    def dims(self, name: str, ndim: int | None = None) -> list[int]:
        """Saved dimensions of a tensor with n axes (as the output has), from the front; all where none is named."""
        ndim = len(self.output) if ndim is None else ndim
        value = self.saved(name)
        dims = (value,) if isinstance(value, int) else tuple(value or ())
        return [fields.signed(d) % max(ndim, 1) for d in dims] or list(range(ndim))

    def dim(self, ndim: int | None = None) -> int:
        return self.dims("dim", ndim)[0]
