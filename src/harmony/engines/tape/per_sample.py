"""Per-sample gradients of a recorded run under K losses: their Gram blocks, and their weighted sums."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harmony.engines.precision import accumulating, full_precision
from harmony.engines.run import Weigh
from harmony.engines.tape.ghost import ghost
from harmony.engines.tape.graph import Output
from harmony.engines.tape.layout import Place
from harmony.engines.tape.materialize import Materializer, ScratchBuffer
from harmony.engines.tape.param_use import Grads
from harmony.engines.tape.plan import ParamBlock, Update
from harmony.engines.tape.sample_block import SampleBlock, equal_groups, spread

Buffers = dict[int, Tensor]
"""Per-sample gradients (K, g, width) of blocks of parameters, by number of the block."""


@dataclass(eq=False)
class PerSampleGradients:
    """Gram blocks and updates, made of the output gradients of every op that uses a parameter, under each loss."""

    blocks: list[ParamBlock]
    grads: Grads
    layouts: dict[Output, Place]  # where the samples lie in these gradients
    leaves: list[Tensor]  # all parameters
    size: int  # B
    memory: int  # bytes for per-sample gradients
    update: Update
    scratch: ScratchBuffer  # for per-sample gradients that are used and forgotten
    labels: int  # L, the number of Grams
    backward: Callable[[Tensor], list[Tensor]]  # weights (B, L, K) -> the update by ordinary backward passes

    def __post_init__(self) -> None:
        self.kept: list[tuple[SampleBlock, Buffers]] = []
        self.losses = len(self.grads)
        self.device = self.leaves[0].device
        self.dtype = torch.float64 if any(p.dtype == torch.float64 for p in self.leaves) else torch.float32
        self.counted = {n: block for n, block in enumerate(self.blocks) if block.counted}
        self.instantiated = {n: block for n, block in self.counted.items() if block.choice == "instantiate"}

    @torch.no_grad()
    def gram(self, group_size: int) -> Tensor:
        """Gram blocks (groups, L, K, K); per-sample gradients are kept for ``combine`` where the update wants them."""
        keep = ScratchBuffer() if self.update == "kept" else None
        blocks = list(self._blocks(group_size, self.size, keep))
        self.kept = [(block, buffers) for block, _, buffers in blocks]
        return torch.cat([gram for _, gram, _ in blocks])

    @torch.no_grad()
    def fused(self, group_size: int, weigh: Weigh) -> tuple[Tensor, list[Tensor]]:
        """Gram blocks, and the update by the weights made of them; per-sample gradients live in one block alone."""
        if self.update != "kept":
            gram = self.gram(group_size)
            weights = weigh(gram, range(len(gram))).repeat_interleave(group_size, 0)[: self.size]
            return gram, self._finish({}, weights)
        totals: dict[int, Tensor] = {}
        grams, rows = [], []
        self.scratch.reset()
        for block, gram, buffers in self._blocks(group_size, self._at_once(self.instantiated.values()), self.scratch):
            first = block.start // group_size
            weights = weigh(gram, range(first, first + block.groups))
            self._add_kept(totals, buffers, weights)
            grams.append(gram)
            rows.append(weights.repeat_interleave(block.size, 0))
            self.scratch.reset()
        return torch.cat(grams), self._finish(totals, torch.cat(rows))

    @torch.no_grad()
    def combine(self, weights: Tensor) -> list[Tensor]:
        """The update ``sum_bk W_bk g_b^k`` for weights (B, L, K): one gradient per parameter."""
        totals: dict[int, Tensor] = {}
        for block, buffers in self.kept:
            self._add_kept(totals, buffers, weights[block.samples][:: block.size])
        return self._finish(totals, weights)

    @torch.no_grad()
    def products(self, direction: Sequence[Tensor], group_size: int) -> Tensor:
        """Inner products (groups, L, K) with one gradient, given for every parameter."""
        directions = {
            n: torch.cat([direction[p].flatten() for p in block.params]).to(self.dtype)
            for n, block in self.counted.items()
        }
        totals = []
        for samples in equal_groups(self.size, group_size):
            total = torch.zeros(samples.groups, self.labels, self.losses, dtype=self.dtype, device=self.device)
            with full_precision(self.device.type):
                for n, materializer in self._materializers(self.counted, samples).items():
                    params = self.counted[n]
                    for block in samples.cut(self._at_once([params])):
                        self.scratch.reset()
                        products = materializer.fill(block, self.scratch) @ directions[n]
                        total[block.within(samples), params.label] += products.mT
            totals.append(total)
        return torch.cat(totals)

    def _blocks(
        self, group_size: int, at_once: int, keep: ScratchBuffer | None
    ) -> Iterator[tuple[SampleBlock, Tensor, Buffers]]:
        """Blocks of groups, with their Gram blocks and the per-sample gradients that are kept."""
        for samples in equal_groups(self.size, group_size):
            materializers = self._materializers(self.instantiated, samples)
            for block in samples.cut(at_once):
                yield block, *self._gram(materializers, block, keep)

    def _materializers(self, blocks: dict[int, ParamBlock], samples: SampleBlock) -> dict[int, Materializer]:
        return {n: Materializer(block, self.grads, self.leaves, samples, self.dtype) for n, block in blocks.items()}

    def _at_once(self, blocks: Iterable[ParamBlock]) -> int:
        """Groups whose gradients fit in the memory allowed for them, for some blocks of parameters together."""
        return max(1, self.memory // max(1, sum(block.scratch for block in blocks) * self.dtype.itemsize))

    def _gram(
        self, materializers: dict[int, Materializer], samples: SampleBlock, keep: ScratchBuffer | None
    ) -> tuple[Tensor, Buffers]:
        """Gram blocks (g, L, K, K) of some groups; and, if they are kept, the gradients they are products of."""
        gram = torch.zeros(samples.groups, self.labels, self.losses, self.losses, dtype=self.dtype, device=self.device)
        buffers: Buffers = {}
        with full_precision(self.device.type):
            for n, params in self.counted.items():
                kept = keep is not None and n in materializers
                for block in samples.cut(samples.groups if kept else self._at_once([params])):
                    if n not in materializers:
                        product = ghost(params, self.grads, block, self.dtype)
                    else:
                        if keep is None:
                            self.scratch.reset()
                        buffer = materializers[n].fill(block, keep or self.scratch)
                        rows = buffer.transpose(0, 1)
                        product = rows @ rows.mT
                        if kept:
                            buffers[n] = buffer
                    gram[block.within(samples), params.label] += product
        return gram, buffers

    def _add_kept(self, totals: dict[int, Tensor], buffers: Buffers, weights: Tensor) -> None:
        """Add what the per-sample gradients of some groups give with weights (g, L, K)."""
        weights = weights.to(self.dtype)
        with full_precision(self.device.type):
            for n, buffer in buffers.items():
                rows, row = buffer.flatten(0, 1).mT, weights[:, self.blocks[n].label].mT.reshape(-1)
                totals[n] = torch.addmv(totals[n], rows, row, out=totals[n]) if n in totals else rows @ row

    def _finish(self, totals: dict[int, Tensor], weights: Tensor) -> list[Tensor]:
        """The update by weights (B, L, K), given the totals (width,) of the blocks whose gradients were kept."""
        if self.update == "backward":
            return self.backward(weights)
        whole = SampleBlock(0, 1, self.size)
        missing = {n: block for n, block in enumerate(self.blocks) if n not in totals}
        for label in sorted({block.label for block in missing.values()}):
            blocks = {n: block for n, block in missing.items() if block.label == label}
            # Parameters without a Gram get the mean of the weights.
            mixed = self._mixed(blocks.values(), weights[:, label] if label >= 0 else weights.mean(1))
            with full_precision(self.device.type):
                for n, block in blocks.items():
                    materializer = Materializer(block, [mixed], self.leaves, whole, self.dtype)
                    totals[n] = materializer.fill(whole, ScratchBuffer())[0, 0]
        grads = {
            p: totals[n][columns].view(self.leaves[p].shape).to(self.leaves[p].dtype)
            for n, block in enumerate(self.blocks)
            for p, columns in block.columns.items()
        }
        return [grads[p] if p in grads else torch.zeros_like(leaf) for p, leaf in enumerate(self.leaves)]

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
