"""How an op uses a tensor that is common to all samples, and the gradient that each group of samples sends to it.

Shapes: ``g`` groups, ``n`` matrix products side by side (1, or the groups of a convolution), ``t`` rows of one group of
samples (tokens, pixels), ``i`` input features, ``o`` output features.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from harmony.engines.eager import eagerly
from harmony.engines.precision import accumulating
from harmony.engines.tape import autograd_fields as fields
from harmony.engines.tape.graph import Output
from harmony.engines.tape.layout import Place
from harmony.engines.tape.sample_block import SampleBlock, only
from harmony.engines.tape.site import Site

Grads = list[dict[Output, Tensor]]
"""For each loss, the gradients of the outputs it reaches."""

OutputGrads = Mapping[int, Sequence[Any]]
"""For each loss that reaches an op, the gradients of its outputs that pass any on; None where the loss sends none."""


@dataclass(frozen=True)
class MatmulUse:
    """A sum over rows of outer products, ``sum_t left_t right_t^T``: linear maps, convolutions, tables."""

    site: Site
    left: Callable[[SampleBlock], Tensor]  # block -> factor for all losses, (g, n, t, i); of a table (g, n, t) indices
    right: Callable[[Tensor, SampleBlock], Tensor]  # gradient of the output, block -> factor of one loss, (g, n, t, o)
    sizes: tuple[int, int, int, int]  # n, t for groups of one sample, i, o
    out_first: bool  # the tensor is stored (n, o, i) rather than (n, i, o)
    table: bool = False  # ``left`` gives indices of rows in place of features
    views: bool = False  # the factors are views of what was saved, which cost nothing

    @property
    def is_product(self) -> bool:
        """Whether the gradient is one matrix product per group, on views."""
        return self.views and self.sizes[0] == 1

    @cached_property
    def flops(self) -> float:
        """Floating-point operations for one sample and one loss."""
        n, t, i, o = self.sizes
        return 2.0 * n * t * o * (1 if self.table else i)

    def gradients(self, grads: OutputGrads, block: SampleBlock) -> dict[int, Tensor]:
        """For each loss, gradients (g, *shape) of the common tensor."""
        _, _, i, o = self.sizes
        left, totals = self.left(block), {}
        for k, (grad,) in grads.items():
            right = accumulating(self.right(grad, block))
            if self.table:
                rows = left.reshape(block.groups, -1) + i * torch.arange(block.groups, device=left.device)[:, None]
                total = right.new_zeros(block.groups * i, o).index_add_(0, rows.flatten(), right.reshape(-1, o))
            else:
                left = accumulating(left)
                total = right.mT @ left if self.out_first else left.mT @ right
            totals[k] = total.reshape(block.groups, *self.site.input)
        return totals


@dataclass(frozen=True)
class BroadcastUse:
    """An elementwise use that broadcasts: the gradient is summed over what the tensor was spread over."""

    site: Site
    factor: Callable[[SampleBlock], Tensor] | None = None  # multiplies the output's gradient, (g, size, *one sample)
    scale: complex = 1.0
    spread: torch.Size | None = None  # shape by which the tensor broadcasts, where it is not its own
    total: Callable[[Tensor, torch.Size], Tensor] | None = None  # sums (g, size, *one sample) to (g, *spread)

    @property
    def target(self) -> torch.Size:
        """The shape that gradients are summed to."""
        return self.site.input if self.spread is None else self.spread

    @property
    def is_product(self) -> bool:
        """Whether a vector is added along the last axis, as a bias is: its gradient is a product with ones."""
        plain = self.factor is None and self.scale == 1 and self.total is None and self.spread is None
        shape, output = self.site.input, self.site.output
        return plain and shape == output[-1:] and self.site.place.axis < len(output) - 1

    @cached_property
    def flops(self) -> float:
        """Floating-point operations for one sample and one loss."""
        output, place = self.site.output, self.site.place
        return 2.0 * output.numel() / output[place.axis] * place.rows

    def gradients(self, grads: OutputGrads, block: SampleBlock) -> dict[int, Tensor]:
        """For each loss, gradients (g, *shape) of the common tensor."""
        factor = None if self.factor is None else accumulating(self.factor(block))
        totals = {}
        for k, (grad,) in grads.items():
            x = accumulating(self.site.grouped(grad, block))
            x = x if factor is None else x * factor
            x = (self.total or sum_to)(x, self.target)
            totals[k] = (x if self.scale == 1 else x * self.scale).reshape(block.groups, *self.site.input)
        return totals


@dataclass(frozen=True)
class OpaqueUse:
    """Any op: its own backward, once for each group, with the other samples' gradients set to zero. Exact, and slow."""

    site: Site
    outputs: dict[int, Place]  # the outputs that pass gradients on, by number, and where the samples lie in them
    source: GradientEdge  # the common tensor

    flops = 0.0  # not known
    is_product = False

    def gradients(self, grads: OutputGrads, block: SampleBlock) -> dict[int, Tensor]:
        """For each loss, gradients (g, *shape) of the common tensor."""
        totals = {}
        for k, loss in grads.items():
            sent = [(n, place, g) for (n, place), g in zip(self.outputs.items(), loss, strict=True) if g is not None]
            masked = [torch.stack([only(g, place, group) for group in block.cut(1)]) for _, place, g in sent]
            edges = [GradientEdge(self.site.node, n) for n, _, _ in sent]
            totals[k] = accumulating(batched_vjp(edges, [self.source], masked)[0])
        return totals


ParamUse = MatmulUse | BroadcastUse | OpaqueUse


def sum_to(x: Tensor, shape: torch.Size) -> Tensor:
    """Sum (g, size, *broadcast shape) over the group and all that was broadcast: (g, *shape)."""
    missing = x.ndim - 2 - len(shape)
    ones = next((axis for axis, n in enumerate(shape) if n != 1), len(shape))
    x = x.flatten(1, 1 + missing + ones)
    kept = x.shape[2:]
    rows = x.reshape(*x.shape[:2], -1)
    # A product with ones sums rows several times faster than `sum` does.
    x = (rows.new_ones(len(rows), 1, rows.shape[1]) @ rows).view(len(x), *kept)
    spread = [axis + 1 for axis, (wide, narrow) in enumerate(zip(kept, shape[ones:], strict=True)) if wide != narrow]
    return (x.sum(spread, keepdim=True) if spread else x).reshape(len(x), *shape)


@eagerly()
def batched_vjp(edges: Sequence[GradientEdge], inputs: Sequence[Any], grads: Sequence[Tensor]) -> list[Tensor]:
    """Pull gradients (g, *shape) of some outputs back to inputs: (g, *input shape) each."""
    options: dict[str, Any] = {"retain_graph": True, "materialize_grads": True}
    grads = [grad.to(fields.dtypes(e.node)[e.output_nr]) for e, grad in zip(edges, grads, strict=True)]
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
