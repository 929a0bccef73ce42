"""One output of one op of the graph, as the rules for the sample axis see it."""

import enum
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.graph import Node

from harmony.engines.tape.graph import signed
from harmony.engines.tape.layout import Place


class Mark(enum.Enum):
    """What can be said of a tensor besides a place for its samples."""

    COMMON = "the gradients of all samples reach all of it"
    MIXED = "the gradients of several samples meet in it"
    UNKNOWN = "no rule tells"


State = Place | Mark
"""Where the samples lie in a tensor, as far as one of its uses tells."""

Claims = Sequence[State | None]
"""For each differentiable input of an op, what the op tells of it; None where no gradient passes."""


class Op(NamedTuple):
    """An op, where the samples lie in one of its outputs, and the shapes around it.

    Attributes:
        node: The backward node.
        number: Which output.
        place: Where the samples lie in it.
        outputs: Shapes of all outputs.
        inputs: Shapes of the inputs; None for those without a gradient.
        size: B.
    """

    node: Node
    number: int
    place: Place
    outputs: Sequence[torch.Size]
    inputs: Sequence[torch.Size | None]
    size: int

    @property
    def shape(self) -> torch.Size:
        """Shape of the output."""
        return self.outputs[self.number]

    @property
    def input(self) -> torch.Size:
        """Shape of the first input."""
        shape = self.inputs[0]
        assert shape is not None
        return shape

    def option(self, name: str) -> Any:
        """An option that autograd has saved with the op."""
        return getattr(self.node, f"_saved_{name}")

    def dims(self, name: str, ndim: int) -> set[int]:
        """Dimensions among the options of the op, counted from the front; all of them where none is named."""
        value = self.option(name)
        dims = (value,) if isinstance(value, int) else tuple(value or ())
        return {signed(d) % max(ndim, 1) for d in dims} or set(range(ndim))
