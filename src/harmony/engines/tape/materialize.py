"""Per-sample gradients of parameters, written side by side into buffers."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from harmony.engines.tape.graph import is_complex
from harmony.engines.tape.layout import SampleBlock
from harmony.engines.tape.param_tensor import ParamTensor
from harmony.engines.tape.param_use import BroadcastUse, Grads, MatmulUse
from harmony.engines.tape.plan import ParamBlock


class ScratchBuffer:
    """Memory that is handed out piece after piece and used again from the start: fresh memory is slow."""

    def __init__(self) -> None:
        self.chunks: list[Tensor] = []
        self.used = 0

    def reset(self) -> None:
        """Hand out the same memory again."""
        self.used = 0

    def take(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor of the given shape, its entries undefined."""
        n = torch.Size(shape).numel()
        if self.used == len(self.chunks) or self.chunks[self.used].numel() < n:
            self.chunks[self.used :] = [torch.empty(n, dtype=dtype, device=device)]
        self.used += 1
        return self.chunks[self.used - 1][:n].view(*shape)


class _Product(NamedTuple):
    """A gradient that is one matrix product per group, as it stands in the parameter, of factors (g, ...).

    Attributes:
        loss: Number of the loss.
        param: Number of the parameter.
        left: The factor that all losses share: one tensor for all of them.
        right: The factor of this loss.
        left_first: Whether the product is ``left @ right``, and not ``right @ left``.
    """

    loss: int
    param: int
    left: Tensor
    right: Tensor
    left_first: bool


class Materializer:
    """Computes the gradients of pieces for any block of a part; views that all blocks share are made once."""

    def __init__(self, pieces: Sequence[ParamBlock], grads: Grads, leaves: Sequence[Tensor], part: SampleBlock) -> None:
        self.dtype = torch.float64 if any(p.dtype == torch.float64 for p in leaves) else torch.float32
        self.grads = grads
        self.leaves = leaves
        self.part = part
        self.products: dict[int, list[_Product]] = {}
        self.others: dict[int, list[ParamTensor]] = {}
        for piece in pieces:
            self.products[id(piece)] = [product for target in piece.targets for product in self._products(target)]
            self.others[id(piece)] = [target for target in piece.targets if not _is_product(target)]

    def _products(self, target: ParamTensor) -> list[_Product]:
        if not _is_product(target):
            return []
        products = []
        for use, outputs in target.uses:
            grads = {k: loss[outputs[0]] for k, loss in enumerate(self.grads) if outputs[0] in loss}
            if isinstance(use, MatmulUse):
                left_first = use.out_first == target.transposed
                left = use.left(self.part)[:, 0] if grads else None
                rights = {k: use.right(grad, self.part)[:, 0] for k, grad in grads.items()}
                if left_first:
                    left = None if left is None else left.mT
                else:
                    rights = {k: right.mT for k, right in rights.items()}
            else:
                assert isinstance(use, BroadcastUse)
                left_first = True
                rights = {k: use.site.grouped(grad, self.part).flatten(1, -2) for k, grad in grads.items()}
                left = next((r.new_ones(1, 1, r.shape[1]).expand(len(r), -1, -1) for r in rights.values()), None)
            for k, right in rights.items():
                assert left is not None
                products.append(_Product(k, target.params[0], left, right, left_first))
        return products

    def fill(self, piece: ParamBlock, block: SampleBlock, storage: ScratchBuffer) -> Tensor:
        """Gradients (K, g, width) of a piece's parameters under each loss, for a block of the groups."""
        shape = (len(self.grads), block.groups, piece.width)
        buffer = storage.take(shape, self.dtype, self.leaves[0].device)
        places = {
            (p, k): buffer[k, :, offset : offset + self.leaves[p].numel()]
            for p, offset in zip(piece.params, piece.offsets, strict=True)
            for k in range(len(self.grads))
        }
        empty = set(places)
        groups = block.within(self.part)
        shared, left = None, torch.empty(0)
        for k, p, factor, right, left_first in self.products[id(piece)]:
            if factor is not shared:
                shared, left = factor, factor[groups].to(self.dtype)
            right, place = right[groups].to(self.dtype), places[p, k]
            a, b = (left, right) if left_first else (right, left)
            if not place.is_contiguous():  # among small ones
                _put(place, (a @ b).flatten(1), (p, k) in empty)
            elif (p, k) in empty:
                torch.bmm(a, b, out=place.view(len(a), a.shape[1], b.shape[2]))
            else:
                place.view(len(a), a.shape[1], b.shape[2]).baddbmm_(a, b)
            empty.discard((p, k))
        for target in self.others[id(piece)]:
            for k, total in enumerate(self._sums(target, block)):
                if total is not None:
                    for p, grad in zip(target.params, target.pull(total, self.leaves), strict=True):
                        _put(places[p, k], grad.flatten(1) if grad.ndim > 1 else grad[:, None], (p, k) in empty)
                        empty.discard((p, k))
        for unreached in empty:
            places[unreached].zero_()
        return buffer

    def _sums(self, target: ParamTensor, block: SampleBlock) -> list[Tensor | None]:
        """Gradients (g, *shape) of a shared tensor under each loss, over all its uses."""
        sums: list[Tensor | None] = [None] * len(self.grads)
        for use, outputs in target.uses:
            reached = [k for k, loss in enumerate(self.grads) if any(o in loss for o in outputs)]
            prepared = use.prepare(block) if reached else None
            for k in reached:
                grad = use.gradient(prepared, [self.grads[k].get(o) for o in outputs], block)  # type: ignore[arg-type]
                if grad.is_complex() and not target.is_complex:
                    grad = grad.real
                before = sums[k]
                sums[k] = grad if before is None else before + grad
        return sums


def _is_product(target: ParamTensor) -> bool:
    """Whether all uses of a target are matrix products on views, which give the parameter's gradient as it stands."""
    return all(
        (target.direct(use) or (target.flat and _is_bias(use))) and not is_complex(use.site.node)
        for use, _ in target.uses
    )


def _is_bias(use: object) -> bool:
    """Whether a use adds a vector along the last axis: its gradient is a product with ones."""
    return (
        isinstance(use, BroadcastUse)
        and use.plain
        and len(use.site.shape) == 1
        and use.site.layout.axis < len(use.site.output) - 1
        and use.site.shape[0] == use.site.output[-1]
    )


def _put(place: Tensor, grad: Tensor, first: bool) -> None:
    if first:
        place.copy_(grad)
    else:
        place.add_(grad)
