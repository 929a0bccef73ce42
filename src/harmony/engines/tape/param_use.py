"""How an op uses a shared tensor, and the gradient that each group of samples sends to it.

Shapes: ``g`` groups, ``n`` matrix products side by side (1, or the groups of a convolution), ``t`` rows of one group of
samples (tokens, pixels), ``i`` input features, ``o`` output features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from harmony.engines.eager import eagerly
from harmony.engines.precision import accumulating
from harmony.engines.tape.graph import Output
from harmony.engines.tape.layout import Place, RowMap, SampleBlock, grouped, split

Grads = list[dict[Output, Tensor]]
"""For each loss, the gradients of the outputs it reaches."""

Gradients = Sequence[Any]
"""Gradients of the outputs of an op that pass any on, over the whole batch; None where a loss sends nothing."""


class Site(NamedTuple):
    """One input of one op, fed by a shared tensor.

    Attributes:
        node: The op.
        slot: Which of its differentiable inputs.
        layout: Where the samples lie in its (first) output.
        output: Shape of that output.
        shape: Shape of the shared tensor.
    """

    node: Node
    slot: int
    layout: Place
    output: torch.Size
    shape: torch.Size

    def grouped(self, x: Tensor, part: SampleBlock) -> Tensor:
        """Groups first, of a tensor that broadcasts against the output: (g, size, *one sample)."""
        if x.shape != self.output:
            x = x.expand(self.output)
        return grouped(x, self.layout, part)


@dataclass(frozen=True)
class MatmulUse:
    """A sum over rows of outer products, ``sum_t left_t right_t^T``: linear maps, convolutions, tables.

    Attributes:
        site: Where.
        left: SampleBlock -> factor that all losses share, (g, n, t, i); for a table the indices, (g, n, t).
        right: Gradient of the output, part -> factor of one loss, (g, n, t, o).
        sizes: n, t for groups of one sample, i, o.
        out_first: Whether the shared tensor is stored (n, o, i) rather than (n, i, o).
        table: Whether ``left`` gives indices of rows in place of features.
        views: Whether the factors are views of what was saved, which cost nothing.
    """

    site: Site
    left: Callable[[SampleBlock], Tensor]
    right: Callable[[Tensor, SampleBlock], Tensor]
    sizes: tuple[int, int, int, int]
    out_first: bool
    table: bool = False
    views: bool = False

    @cached_property
    def flops(self) -> float:
        """Floating-point operations for one sample and one loss."""
        n, t, i, o = self.sizes
        return 2.0 * n * t * o * (1 if self.table else i)

    def prepare(self, part: SampleBlock) -> Tensor:
        """What all losses share: the left factor."""
        return self.left(part) if self.table else accumulating(self.left(part))

    def gradient(self, left: Tensor, grads: Gradients, part: SampleBlock) -> Tensor:
        """Gradients (g, *shape) of the shared tensor, given what was prepared."""
        right = accumulating(self.right(grads[0], part))
        _, _, i, o = self.sizes
        if self.table:
            rows = left.reshape(part.groups, -1) + i * torch.arange(part.groups, device=left.device)[:, None]
            total = right.new_zeros(part.groups * i, o).index_add_(0, rows.flatten(), right.reshape(-1, o))
        else:
            total = right.mT @ left if self.out_first else left.mT @ right
        return total.reshape(part.groups, *self.site.shape)


@dataclass(frozen=True)
class BroadcastUse:
    """An elementwise use that broadcasts: the gradient is summed over what the shared tensor was spread over.

    Attributes:
        site: Where.
        factor: SampleBlock -> what the gradient of the output is multiplied by, (g, size, *one sample); None for one.
        scale: A number to multiply with.
        spread: Shape by which the shared tensor broadcasts, where it is not its own.
        total: Sums (g, size, *one sample) to (g, *spread).
    """

    site: Site
    factor: Callable[[SampleBlock], Tensor] | None = None
    scale: complex = 1.0
    spread: torch.Size | None = None
    total: Callable[[Tensor, torch.Size], Tensor] | None = None

    @property
    def plain(self) -> bool:
        """Whether the gradient is nothing but a sum."""
        return self.factor is None and self.scale == 1 and self.total is None and self.spread is None

    @cached_property
    def flops(self) -> float:
        """Floating-point operations for one sample and one loss."""
        output, layout = self.site.output, self.site.layout
        return 2.0 * output.numel() / output[layout.axis] * layout.rows

    def prepare(self, part: SampleBlock) -> Tensor | None:
        """What all losses share: the factor."""
        return None if self.factor is None else accumulating(self.factor(part))

    def gradient(self, factor: Tensor | None, grads: Gradients, part: SampleBlock) -> Tensor:
        """Gradients (g, *shape) of the shared tensor, given what was prepared."""
        x = accumulating(self.site.grouped(grads[0], part))
        x = x if factor is None else x * factor
        x = (self.total or sum_to)(x, self.site.shape if self.spread is None else self.spread)
        return (x if self.scale == 1 else x * self.scale).reshape(part.groups, *self.site.shape)


@dataclass(frozen=True)
class OpaqueUse:
    """Any op: its own backward, once for each group, with the other samples' gradients set to zero. Exact, and slow.

    Attributes:
        site: Where.
        layouts: Where the samples lie in each output of the op that passes gradients on.
        numbers: The numbers of these outputs.
        source: The shared tensor.
    """

    site: Site
    layouts: list[Place]
    numbers: list[int]
    source: GradientEdge

    @property
    def flops(self) -> float:
        """Not known."""
        return 0.0

    def prepare(self, part: SampleBlock) -> None:
        """Nothing is shared."""

    def gradient(self, _: None, grads: Gradients, part: SampleBlock) -> Tensor:
        """Gradients (g, *shape) of the shared tensor."""
        reached = [
            (GradientEdge(self.site.node, number), layout, grad)
            for number, layout, grad in zip(self.numbers, self.layouts, grads, strict=True)
            if grad is not None
        ]
        masked = [
            torch.stack([_only(grad, layout, part, group) for group in range(part.groups)])
            for _, layout, grad in reached
        ]
        (rows,) = batched_vjp([edge for edge, _, _ in reached], [self.source], masked)
        return accumulating(rows)


ParamUse = MatmulUse | BroadcastUse | OpaqueUse
"""All have ``prepare(part)``, for what the losses share, and ``gradient(prepared, grads, part)``, for each of them."""


def sum_to(x: Tensor, shape: torch.Size) -> Tensor:
    """Sum (g, size, *broadcast shape) over the group and all that was broadcast: (g, *shape)."""
    missing = x.ndim - 2 - len(shape)
    ones = next((axis for axis, n in enumerate(shape) if n != 1), len(shape))
    x = x.flatten(1, 1 + missing + ones)
    kept = x.shape[2:]
    rows = x.reshape(*x.shape[:2], -1)
    # A product with ones sums rows several times faster than `sum` does.
    x = (rows.new_ones(len(rows), 1, rows.shape[1]) @ rows).view(len(x), *kept)
    spread = [axis + 1 for axis, (have, want) in enumerate(zip(kept, shape[ones:], strict=True)) if have != want]
    return (x.sum(spread, keepdim=True) if spread else x).reshape(len(x), *shape)


@eagerly()
def batched_vjp(edges: Sequence[Any], inputs: Sequence[Any], grads: Sequence[Tensor]) -> list[Tensor]:
    """Pull gradients (g, *shape) of some outputs back to inputs: (g, *input shape) each."""
    options: dict[str, Any] = {"retain_graph": True, "materialize_grads": True}
    kinds = [edge.node._input_metadata[edge.output_nr].dtype for edge in edges]
    grads = [grad.to(kind) for grad, kind in zip(grads, kinds, strict=True)]
    if len(grads[0]) > 1 and sum(grad.numel() for grad in grads) <= _BATCHED_AT_MOST:
        try:
            return list(torch.autograd.grad(edges, inputs, grads, is_grads_batched=True, **options))
        except RuntimeError:  # an op without a batching rule
            pass
    rows = [
        [g.to_dense() if g.is_sparse else g for g in torch.autograd.grad(edges, inputs, row, **options)]
        for row in zip(*grads, strict=True)
    ]
    return [torch.stack(column) for column in zip(*rows, strict=True)]


_BATCHED_AT_MOST = 1 << 24  # entries; beyond, a loop takes no more time and less memory


def _only(grad: Tensor, place: Place, part: SampleBlock, group: int) -> Tensor:
    """The gradient of one group of a part, zero elsewhere."""
    first = part.start + group * part.size
    masked = torch.zeros_like(grad, memory_format=torch.contiguous_format)
    if isinstance(place, RowMap):
        rows = ((place.ids >= first) & (place.ids < first + part.size)).nonzero().flatten().to(grad.device)
        return masked.index_copy_(place.axis, rows, grad.index_select(place.axis, rows))
    axis, outer, inner = place
    sizes = (outer, grad.shape[axis] // (outer * inner), inner)
    index = (*[slice(None)] * (axis + 1), slice(first, first + part.size))
    split(masked, axis, sizes)[index] = split(grad, axis, sizes)[index]
    return masked
