"""How an op uses a tensor that is common to all samples, and the gradient that each group of samples sends to it.

A use is made of shapes and options alone, so that it serves every batch of the same shapes. It names the tensors that
it reads, and gets those that autograd has saved for the batch at hand.

Shapes: ``g`` groups, ``n`` matrix products side by side (1, or the groups of a convolution), ``t`` rows of one group of
samples (tokens, pixels), ``i`` input features, ``o`` output features.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from harmony.engines.eager import eagerly
from harmony.engines.precision import accumulating
from harmony.engines.tape import autograd_fields as fields
from harmony.engines.tape.graph import Graph, Output
from harmony.engines.tape.layout import Place
from harmony.engines.tape.sample_block import SampleBlock, only
from harmony.engines.tape.site import Geometry

Grads = list[dict[Output, Tensor]]
"""For each loss, the gradients of the outputs it reaches."""

Saved = Mapping[str, Any]
"""What autograd has saved with an op, by name."""

OutputGrads = Mapping[int, Sequence[Any]]
"""For each loss that reaches an op, the gradients of its outputs that pass any on; None where the loss sends none."""


@dataclass(frozen=True)
class MatmulUse:
    """A sum over rows of outer products, ``sum_t left_t right_t^T``: linear maps, biases, convolutions, tables.

    Attributes:
        site: The op.
        left: (saved, block) -> the factor of all losses, (g n, t, i); of a table, indices (g, t).
        right: (saved, gradient of the output, block) -> the factor of one loss, (g n, t, o).
        reads: Names of what is saved.
        sizes: n, t for groups of one sample, i, o.
        out_first: Whether the tensor is stored (n, o, i) rather than (n, i, o).
        table: Whether ``left`` gives indices of rows in place of features.
        copied: Entries of the two factors, for one sample and one loss, that are no views.
    """

    site: Geometry
    left: Callable[[Saved, SampleBlock], Tensor]
    right: Callable[[Saved, Tensor, SampleBlock], Tensor]
    reads: tuple[str, ...]
    sizes: tuple[int, int, int, int]
    out_first: bool
    table: bool = False
    copied: int = 0

    @functools.cached_property
    def flops(self) -> float:
        """Floating-point operations for one sample and one loss."""
        n, t, i, o = self.sizes
        return 2.0 * n * t * o * (1 if self.table else i)

    def gradients(self, graph: Graph, node: int, grads: OutputGrads, block: SampleBlock) -> dict[int, Tensor]:
        """For each loss, gradients (g, *shape) of the common tensor."""
        _, _, i, o = self.sizes
        saved = graph.saved(node, self.reads)
        left, totals = self.left(saved, block), {}
        for k, (grad,) in grads.items():
            right = accumulating(self.right(saved, grad, block))
            if self.table:
                rows = left + i * torch.arange(block.groups, device=left.device)[:, None]
                total = right.new_zeros(block.groups * i, o).index_add_(0, rows.flatten(), right.reshape(-1, o))
            else:
                left = accumulating(left)
                total = right.mT @ left if self.out_first else left.mT @ right
            totals[k] = total.reshape(block.groups, *self.site.input)
        return totals


@dataclass(frozen=True)
class BroadcastUse:
    """An elementwise use that broadcasts: the gradient is summed over what the tensor was spread over."""

    site: Geometry
    factor: Callable[[Saved, SampleBlock], Tensor] | None = None  # multiplies the output's gradient (g, size, *sample)
    reads: tuple[str, ...] = ()  # names of what is saved
    scale: complex = 1.0
    spread: torch.Size | None = None  # shape by which the tensor broadcasts, where it is not its own
    total: Callable[[Tensor, torch.Size], Tensor] | None = None  # sums (g, size, *sample) to (g, *spread)

    @property
    def target(self) -> torch.Size:
        """The shape that gradients are summed to."""
        return self.site.input if self.spread is None else self.spread

    @functools.cached_property
    def flops(self) -> float:
        """Floating-point operations for one sample and one loss."""
        return 2.0 * entries_of_sample(self.site)

    @property
    def copied(self) -> int:
        """Entries, for one sample, of what is made on the way."""
        return entries_of_sample(self.site) * (1 if self.factor is None else 3)

    def gradients(self, graph: Graph, node: int, grads: OutputGrads, block: SampleBlock) -> dict[int, Tensor]:
        """For each loss, gradients (g, *shape) of the common tensor."""
        factor = None if self.factor is None else accumulating(self.factor(graph.saved(node, self.reads), block))
        totals = {}
        for k, (grad,) in grads.items():
            x = accumulating(self.site.grouped(grad, block))
            x = x if factor is None else x * factor
            x = (self.total or sum_to)(x, self.target)
            totals[k] = (x if self.scale == 1 else x * self.scale).reshape(block.groups, *self.site.input)
        return totals

    def as_product(self) -> MatmulUse | None:
        """Of a vector along the last axis, such as a bias: the same as a product of rows with ones."""
        site, shape, factor = self.site, self.site.input, self.factor
        plain = self.scale == 1 and self.total is None and self.spread is None and not site.dtype.is_complex
        if not plain or shape != site.output[-1:] or site.place.axis >= len(site.output) - 1:
            return None
        t = entries_of_sample(site) // shape[0]

        def left(saved: Saved, block: SampleBlock) -> Tensor:
            return _one(site.device, site.dtype).expand(block.groups, block.size * t, 1)

        def right(saved: Saved, grad: Tensor, block: SampleBlock) -> Tensor:
            rows = site.grouped(grad, block)
            if factor is not None:
                rows = accumulating(rows) * accumulating(factor(saved, block))
            return rows.flatten(1, -2)

        is_view = factor is None and site.place.axis == 0 and site.place.contiguous
        copied = 0 if is_view else self.copied
        return MatmulUse(site, left, right, self.reads, (1, t, 1, shape[0]), out_first=False, copied=copied)


@dataclass(frozen=True)
class OpaqueUse:
    """Any op: its own backward, once for each group, with the other samples' gradients set to zero. Exact, and slow."""

    site: Geometry
    outputs: dict[int, Place]  # the outputs that pass gradients on, by number, and where the samples lie in them
    source: Output  # the common tensor

    flops = 0.0  # not known
    reads = ()

    @property
    def copied(self) -> int:
        """Entries that are made for each sample: gradients of the whole batch, before the op and behind it."""
        shapes = [*self.site.outputs, *self.site.inputs]
        return sum(math.prod(shape) for shape in shapes if shape is not None)

    def gradients(self, graph: Graph, node: int, grads: OutputGrads, block: SampleBlock) -> dict[int, Tensor]:
        """For each loss, gradients (g, *shape) of the common tensor."""
        totals = {}
        for k, loss in grads.items():
            sent = [(n, place, g) for (n, place), g in zip(self.outputs.items(), loss, strict=True) if g is not None]
            masked = [torch.stack([only(g, place, group) for group in block.cut(1)]) for _, place, g in sent]
            edges = [graph.edge((node, n)) for n, _, _ in sent]
            totals[k] = accumulating(batched_vjp(edges, [graph.edge(self.source)], masked)[0])
        return totals


ParamUse = MatmulUse | BroadcastUse | OpaqueUse


@functools.cache
def _one(device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return torch.ones((), device=device, dtype=dtype)


def entries_of_sample(site: Geometry) -> int:
    """Entries of an output that belong to one sample."""
    output, place = site.output, site.place
    return output.numel() // output[place.axis] * place.rows


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
