"""Per-sample gradients of parameters, written side by side into buffers."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from harmony.engines.tape import autograd_fields as fields
from harmony.engines.tape.param_tensor import ParamTensor
from harmony.engines.tape.param_use import Grads, MatmulUse
from harmony.engines.tape.plan import ParamBlock
from harmony.engines.tape.sample_block import SampleBlock


class ScratchBuffer:
    """Memory that is used again and again, since fresh memory is slow."""

    def __init__(self) -> None:
        self.chunks: list[Tensor] = []
        self.used = 0

    def reset(self) -> None:
        self.used = 0

    def take(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor of the given shape, its entries undefined."""
        n = torch.Size(shape).numel()
        if self.used == len(self.chunks) or self.chunks[self.used].numel() < n:
            self.chunks[self.used :] = [torch.empty(n, dtype=dtype, device=device)]
        self.used += 1
        return self.chunks[self.used - 1][:n].view(*shape)


class _Product(NamedTuple):
    """A use whose gradient, as it stands in the parameter, is one matrix product per group."""

    param: int
    common: Tensor  # the factor (g, i, rows), or (g, rows, i), of all losses
    factors: dict[int, Tensor]  # the other one, (g, rows, o), or (g, o, rows), by number of the loss
    common_first: bool  # the order of the two


class Materializer:
    """Computes the gradients of a block of parameters for parts of some samples, from views that are made once."""

    def __init__(
        self, params: ParamBlock, grads: Grads, leaves: Sequence[Tensor], samples: SampleBlock, dtype: torch.dtype
    ) -> None:
        self.columns = params.columns
        self.width = params.width
        self.dtype = dtype
        self.grads = grads
        self.leaves = leaves
        self.samples = samples
        self.products = [p for t in params.tensors if _is_product(t) for p in self._products(t)]
        self.summed = [tensor for tensor in params.tensors if not _is_product(tensor)]

    def _products(self, tensor: ParamTensor) -> list[_Product]:
        products = []
        for use, outputs in tensor.uses:
            grads = {k: loss[outputs[0]] for k, loss in enumerate(self.grads) if outputs[0] in loss}
            if not grads:
                continue
            if isinstance(use, MatmulUse):
                common = use.left(self.samples)[:, 0]
                factors = {k: use.right(grad, self.samples)[:, 0] for k, grad in grads.items()}
                common_first = use.out_first == tensor.transposed
                if common_first:
                    common = common.mT
                else:
                    factors = {k: factor.mT for k, factor in factors.items()}
            else:  # the product with ones that sums a bias
                factors = {k: use.site.grouped(grad, self.samples).flatten(1, -2) for k, grad in grads.items()}
                groups, rows, _ = next(iter(factors.values())).shape
                common, common_first = (
                    self.leaves[0].new_ones(1, 1, rows, dtype=self.dtype).expand(groups, -1, -1),
                    True,
                )
            products.append(_Product(tensor.params[0], common, factors, common_first))
        return products

    def fill(self, block: SampleBlock, scratch: ScratchBuffer) -> Tensor:
        """Gradients (K, g, width) of the parameters under each loss, for a part of the samples."""
        buffer = scratch.take((len(self.grads), block.groups, self.width), self.dtype, self.leaves[0].device)
        places = {(p, k): buffer[k, :, cols] for p, cols in self.columns.items() for k in range(len(self.grads))}
        empty = set(places)
        groups = block.within(self.samples)
        for p, common, factors, common_first in self.products:
            common = common[groups].to(self.dtype)
            for k, factor in factors.items():
                factor = factor[groups].to(self.dtype)
                a, b = (common, factor) if common_first else (factor, common)
                _add_product(places[p, k], a, b, (p, k) in empty)
                empty.discard((p, k))
        for tensor in self.summed:
            for k, total in self._sums(tensor, block).items():
                for p, grad in zip(tensor.params, tensor.pull(total, self.leaves), strict=True):
                    _add(places[p, k], grad.flatten(1) if grad.ndim > 1 else grad[:, None], (p, k) in empty)
                    empty.discard((p, k))
        for unreached in empty:
            places[unreached].zero_()
        return buffer

    def _sums(self, tensor: ParamTensor, block: SampleBlock) -> dict[int, Tensor]:
        """Gradients (g, *shape) of a common tensor under each loss that reaches it, over all its uses."""
        sums: dict[int, Tensor] = {}
        for use, outputs in tensor.uses:
            grads = {k: [loss.get(o) for o in outputs] for k, loss in enumerate(self.grads)}
            reached = {k: loss for k, loss in grads.items() if any(grad is not None for grad in loss)}
            for k, grad in use.gradients(reached, block).items() if reached else ():
                grad = grad.real if grad.is_complex() and not tensor.dtype.is_complex else grad
                sums[k] = sums[k] + grad if k in sums else grad
        return sums


def _is_product(tensor: ParamTensor) -> bool:
    """Whether all uses of a tensor are matrix products on views, which give the parameter's gradient as it stands."""
    products = [use.is_product and not fields.dtypes(use.site.node)[0].is_complex for use, _ in tensor.uses]
    return (tensor.flat or tensor.transposed) and all(products)


def _add_product(place: Tensor, a: Tensor, b: Tensor, is_first: bool) -> None:
    """Write ``a @ b`` into (g, entries), or add it to what stands there."""
    if not place.is_contiguous():  # among small ones
        _add(place, (a @ b).flatten(1), is_first)
    elif is_first:
        torch.bmm(a, b, out=place.view(len(a), a.shape[1], b.shape[2]))
    else:
        place.view(len(a), a.shape[1], b.shape[2]).baddbmm_(a, b)


def _add(place: Tensor, grad: Tensor, is_first: bool) -> None:
    if is_first:
        place.copy_(grad)
    else:
        place.add_(grad)
