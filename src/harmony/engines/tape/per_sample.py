"""Per-sample gradients of a recorded run under K losses: their Gram blocks, and their weighted sums."""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from harmony.engines.precision import accumulating, full_precision
from harmony.engines.run import Direction, Weigh
from harmony.engines.scratch import Scratch, borrowed
from harmony.engines.tape.along import add_products, passing, takes_products
from harmony.engines.tape.ghost import add_ghost
from harmony.engines.tape.graph import Graph, Output
from harmony.engines.tape.layout import Place
from harmony.engines.tape.materialize import materialize
from harmony.engines.tape.param_use import Grads, OpaqueUse
from harmony.engines.tape.plan import ParamBlock, Update
from harmony.engines.tape.sample_block import SampleBlock, equal_groups, spread

WHOLE = 4  # the share of the memory, one in so many, for gradients of all groups beside those of a part of them

Blocks = Mapping[int, ParamBlock]
"""Blocks of parameters, by number."""


class Kept(NamedTuple):
    """Per-sample gradients (K, g, width) of one block of parameters that wait for their weights."""

    samples: SampleBlock
    number: int  # of the block
    grads: Tensor


@dataclass(eq=False)
class PerSampleGradients:
    """Gram blocks and updates, made of the output gradients of every op that uses a parameter, under each loss."""

    graph: Graph
    blocks: list[ParamBlock]
    grads: Grads
    layouts: dict[Output, Place]  # where the samples lie in these gradients
    leaves: list[Tensor]  # all parameters
    size: int  # B
    memory: int  # bytes for per-sample gradients
    update: Update
    labels: int  # L, the number of Grams
    backward: Callable[[Tensor], list[Tensor]]  # weights (B, L, K) -> the update by ordinary backward passes

    def __post_init__(self) -> None:
        self.kept: list[Kept] = []
        self.losses = len(self.grads)
        self.device = self.leaves[0].device
        self.dtype = torch.float64 if any(p.dtype == torch.float64 for p in self.leaves) else torch.float32
        self.counted = {n: block for n, block in enumerate(self.blocks) if block.counted}

    @torch.no_grad()
    def gram(self, group_size: int) -> Tensor:
        """Gram blocks (groups, L, K, K); per-sample gradients are kept for ``combine`` where the update wants them."""
        self.kept = []
        with contextlib.nullcontext(Scratch(0)) if self.update == "kept" else self._scratch() as memory:
            parts = equal_groups(self.size, group_size)
            return torch.cat([self._gram(samples, self.counted, memory) for samples in parts])

    @torch.no_grad()
    def fused(self, group_size: int, weigh: Weigh) -> tuple[Tensor, list[Tensor]]:
        """Gram blocks, and the update by the weights made of them; few per-sample gradients live at a time."""
        if self.update != "kept":
            gram = self.gram(group_size)
            weights = weigh(gram, range(len(gram))).repeat_interleave(group_size, 0)[: self.size]
            return gram, self._finish({}, weights)
        totals: dict[int, Tensor] = {}
        grams: list[Tensor] = []
        rows: list[Tensor] = []
        with self._scratch() as memory:
            for samples in equal_groups(self.size, group_size):
                memory.reset()
                for gram, weights in self._fused(samples, group_size, weigh, totals, memory):
                    grams.append(gram)
                    rows.append(weights)
        self.kept = []
        return torch.cat(grams), self._finish(totals, torch.cat(rows))

    def _fused(
        self, samples: SampleBlock, group_size: int, weigh: Weigh, totals: dict[int, Tensor], memory: Scratch
    ) -> list[tuple[Tensor, Tensor]]:
        """Gram blocks (g, L, K, K) and weights (n, L, K), part by part; adds what they give to the totals."""
        whole, parted = self._parted(samples.groups)
        self.kept = []
        gram = self._gram(samples, whole, memory)
        waiting, occupied = self.kept, memory.used
        parts = []
        for block in samples.cut(self._at_once(parted.values(), self.memory - self.memory // WHOLE)):
            self.kept = []
            memory.used = occupied
            part = gram[block.within(samples)] + self._gram(block, parted, memory)
            first = block.start // group_size
            weights = weigh(part, range(first, first + block.groups)).repeat_interleave(block.size, 0)
            self._add_kept(totals, self.kept, weights, block)
            parts.append((part, weights))
        self._add_kept(totals, waiting, torch.cat([weights for _, weights in parts]), samples)
        return parts

    @torch.no_grad()
    def combine(self, weights: Tensor) -> list[Tensor]:
        """The update ``sum_bk W_bk g_b^k`` for weights (B, L, K): one gradient per parameter."""
        totals: dict[int, Tensor] = {}
        self._add_kept(totals, self.kept, weights, SampleBlock(0, 1, self.size))
        return self._finish(totals, weights)

    @torch.no_grad()
    def products(self, direction: Direction, group_size: int) -> Tensor:
        """Inner products (groups, L, K) with one gradient, given for every parameter."""
        totals = []
        for samples in equal_groups(self.size, group_size):
            total = torch.zeros(self.labels, samples.groups, self.losses, dtype=self.dtype, device=self.device)
            with full_precision(self.device.type), self._scratch() as memory:
                for params in self.counted.values():
                    along = torch.cat([direction[p].flatten() for p in params.params]).to(self.dtype)
                    self._add_products(total[params.label], params, along, samples, memory)
            totals.append(total.transpose(0, 1))
        return torch.cat(totals)

    def _add_products(
        self, total: Tensor, params: ParamBlock, along: Tensor, samples: SampleBlock, memory: Scratch
    ) -> None:
        """Add the inner products (g, K) of the gradients of some parameters with one of theirs, (width,)."""
        if takes_products(params):
            at_once = max(1, self.memory // (samples.size * passing(params) * self.dtype.itemsize))
            for block in samples.cut(at_once):
                add_products(total[block.within(samples)], params, along, self.graph, self.grads, block)
            return
        for block in samples.cut(self._at_once([params], self.memory)):
            memory.reset()
            total[block.within(samples)] += (self._materialize(params, block, memory) @ along).mT

    def _scratch(self) -> contextlib.AbstractContextManager[Scratch]:
        """Memory for gradients that are used and forgotten; a GPU's allocator has its own."""
        return borrowed(self.memory if self.device.type == "cpu" else 0)

    def _parted(self, groups: int) -> tuple[Blocks, Blocks]:
        """Blocks that are computed for all groups at once, the smallest, and those that are computed part by part."""
        whole, room = {}, self.memory // WHOLE // self.dtype.itemsize
        for n, block in sorted(self.counted.items(), key=lambda item: item[1].kept):
            room -= groups * block.kept
            if room >= 0:
                whole[n] = block
        return whole, {n: block for n, block in self.counted.items() if n not in whole}

    def _at_once(self, blocks: Iterable[ParamBlock], memory: int) -> int:
        """Groups whose gradients fit in so many bytes, for some blocks of parameters together."""
        blocks = list(blocks)
        entries = sum(b.kept for b in blocks) + max((b.passing for b in blocks), default=0)
        return max(1, memory // max(1, entries * self.dtype.itemsize))

    def _gram(self, samples: SampleBlock, blocks: Blocks, memory: Scratch) -> Tensor:
        """Gram blocks (g, L, K, K) of some groups, with gradients in a buffer; they stay there if they are kept."""
        gram = torch.zeros(self.labels, samples.groups, self.losses, self.losses, dtype=self.dtype, device=self.device)
        with full_precision(self.device.type):
            for n, params in blocks.items():
                for block in samples.cut(self._at_once([params], self.memory)):
                    part = gram[params.label, block.within(samples)]
                    if params.choice == "ghost":
                        add_ghost(part, params, self.graph, self.grads, block)
                        continue
                    if self.update != "kept":
                        memory.reset()
                    grads = self._materialize(params, block, memory)
                    rows = grads.transpose(0, 1)
                    part.baddbmm_(rows, rows.mT)
                    if self.update == "kept":
                        self.kept.append(Kept(block, n, grads))
        return gram.transpose(0, 1)

    def _materialize(self, params: ParamBlock, block: SampleBlock, memory: Scratch) -> Tensor:
        """Gradients (K, g, width) of some parameters under each loss."""
        out = memory.take((self.losses, block.groups, params.width), self.dtype, self.device)
        materialize(params, self.graph, self.grads, self.leaves, block, out)
        return out

    def _add_kept(self, totals: dict[int, Tensor], kept: Iterable[Kept], weights: Tensor, samples: SampleBlock) -> None:
        """Add what kept gradients give with the weights (n, L, K) of some samples."""
        weights = weights.to(self.dtype)
        columns: dict[tuple[SampleBlock, int], Tensor] = {}
        with full_precision(self.device.type):
            for block, n, grads in kept:
                key = block, self.blocks[n].label
                if key not in columns:
                    first = block.start - samples.start
                    own = weights[first : first + block.groups * block.size : block.size, key[1]]
                    columns[key] = own.mT.reshape(-1)
                rows, row = grads.flatten(0, 1).mT, columns[key]
                totals[n] = torch.addmv(totals[n], rows, row, out=totals[n]) if n in totals else rows @ row

    def _finish(self, totals: dict[int, Tensor], weights: Tensor) -> list[Tensor]:
        """The update by weights (B, L, K), given the totals (width,) of the blocks whose gradients were kept."""
        if self.update == "backward":
            return self.backward(weights)
        missing = {n: block for n, block in enumerate(self.blocks) if n not in totals}
        for label in sorted({block.label for block in missing.values()}):
            blocks = {n: block for n, block in missing.items() if block.label == label}
            # Parameters without a Gram get the mean of the weights.
            mixed = self._mixed(blocks.values(), weights[:, label] if label >= 0 else weights.mean(1))
            with full_precision(self.device.type):
                totals |= {n: self._summed(block, mixed) for n, block in blocks.items()}
        grads = {
            p: totals[n][columns].view(self.leaves[p].shape).to(self.leaves[p].dtype)
            for n, block in enumerate(self.blocks)
            for p, columns in block.columns.items()
        }
        return [grads[p] if p in grads else torch.zeros_like(leaf) for p, leaf in enumerate(self.leaves)]

    def _summed(self, params: ParamBlock, mixed: dict[Output, Tensor]) -> Tensor:
        """Gradients (width,) of parameters by mixed output gradients, of as many samples at a time as memory allows."""
        at_once = self.size  # an op without a closed form runs but once for all of them
        if not any(isinstance(use, OpaqueUse) for tensor in params.tensors for use, _ in tensor.uses):
            at_once = max(1, self.memory // max(1, params.passing * self.dtype.itemsize))
        total: Tensor | None = None
        for start in range(0, self.size, at_once):
            block = SampleBlock(start, 1, min(at_once, self.size - start))
            part = torch.empty(1, 1, params.width, dtype=self.dtype, device=self.device)
            materialize(params, self.graph, [mixed], self.leaves, block, part)
            total = part if total is None else total.add_(part)
        assert total is not None
        return total[0, 0]

    def _mixed(self, blocks: Iterable[ParamBlock], weights: Tensor) -> dict[Output, Tensor]:
        """``sum_k W_bk dL_k/d(output)`` of every output that some blocks need, for weights (B, K)."""
        mixed: dict[Output, Tensor] = {}
        columns = weights.unbind(1)
        for output in set().union(*(block.outputs for block in blocks)):
            for loss, column in zip(self.grads, columns, strict=True):
                if output in loss:
                    grad = accumulating(loss[output])
                    factor = spread(column.to(grad.dtype), self.layouts[output], grad.ndim)
                    mixed[output] = mixed[output].addcmul_(grad, factor) if output in mixed else grad * factor
        return mixed
