"""Per-sample gradients of a recorded run under K losses: their Gram blocks, and their weighted sums."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from harmony.engines.encoded import Weigh
from harmony.engines.precision import accumulating, full_precision
from harmony.engines.tape.ghost import ghost
from harmony.engines.tape.graph import Output
from harmony.engines.tape.layout import Place, SampleBlock, along
from harmony.engines.tape.materialize import Materializer, ScratchBuffer
from harmony.engines.tape.param_use import Grads
from harmony.engines.tape.plan import ParamBlock, Update

Flat = dict[int, Tensor]
"""Gradients (width,) of pieces, by their number."""

Buffers = dict[int, Tensor]
"""Per-sample gradients (K, g, width) of pieces, by their number."""


class PerSampleGradients:
    """The output gradients of every op that uses a parameter, under each loss, and what to make of them."""

    def __init__(
        self,
        pieces: list[ParamBlock],
        grads: Grads,
        layouts: dict[Output, Place],
        leaves: list[Tensor],
        size: int,
        memory: int,
        update: Update,
        storage: ScratchBuffer,
        labels: int,
        backward: Callable[[Tensor], list[Tensor]],
    ) -> None:
        """Hold on to what one run gave.

        Args:
            pieces: The parameters, and how the products of each are computed.
            grads: See ``Grads``.
            layouts: Where the samples lie in these gradients.
            leaves: All parameters.
            size: B.
            memory: Bytes for per-sample gradients.
            update: Where the update comes from.
            storage: Memory for per-sample gradients that are used and forgotten.
            labels: L, the number of Grams.
            backward: Weights (B, L, K) -> the update by ordinary backward passes.
        """
        self.pieces = pieces
        self.grads = grads
        self.layouts = layouts
        self.leaves = leaves
        self.size = size
        self.memory = memory
        self.update = update
        self.storage = storage
        self.labels = labels
        self.backward = backward
        self.losses = len(grads)
        self.device = leaves[0].device
        self.dtype = torch.float64 if any(p.dtype == torch.float64 for p in leaves) else torch.float32
        self._kept: list[tuple[SampleBlock, Buffers]] = []

    @torch.no_grad()
    def gram(self, group_size: int) -> Tensor:
        """Gram blocks (groups, L, K, K); per-sample gradients are kept for ``combine`` where the update wants them."""
        grams = []
        for part in self._parts(group_size):
            filler = Materializer(self._instantiated(), self.grads, self.leaves, part)
            gram, buffers = self._grams(filler, part, ScratchBuffer() if self.update == "kept" else None)
            grams.append(gram)
            if buffers:
                self._kept.append((part, buffers))
        return torch.cat(grams)

    @torch.no_grad()
    def fused(self, group_size: int, weigh: Weigh) -> tuple[Tensor, list[Tensor]]:
        """Gram blocks, and the update by the weights made of them; per-sample gradients live in one block alone."""
        if self.update != "kept":
            gram = self.gram(group_size)
            weights = weigh(gram, range(len(gram))).repeat_interleave(group_size, 0)[: self.size]
            return gram, self._finish({}, weights)
        total: Flat = {}
        grams, rows, groups = [], [], 0
        for part in self._parts(group_size):
            filler = Materializer(self._instantiated(), self.grads, self.leaves, part)
            for block in _blocks(part, self._at_once(*self._instantiated())):
                self.storage.reset()
                gram, buffers = self._grams(filler, block, self.storage)
                weights = weigh(gram, range(groups, groups + block.groups))
                groups += block.groups
                self._add_kept(total, buffers, weights)
                grams.append(gram)
                rows.append(weights.repeat_interleave(block.size, 0))
        return torch.cat(grams), self._finish(total, torch.cat(rows))

    @torch.no_grad()
    def combine(self, weights: Tensor) -> list[Tensor]:
        """The update ``sum_bk W_bk g_b^k`` for weights (B, L, K): one gradient per parameter."""
        total: Flat = {}
        for block, buffers in self._kept:
            self._add_kept(total, buffers, weights[block.samples][:: block.size])
        return self._finish(total, weights)

    @torch.no_grad()
    def sums(self, group_size: int) -> list[list[list[Tensor]]]:
        """Gradients summed over each group: for each label, K lists of (groups, entries), one for each parameter."""
        return [self._sums([p for p in self.pieces if p.label == number], group_size) for number in range(self.labels)]

    def _sums(self, counted: list[ParamBlock], group_size: int) -> list[list[Tensor]]:
        if not counted:  # no parameter of this Gram is used
            return [[torch.zeros(-(-self.size // group_size), 1, dtype=self.dtype, device=self.device)]] * self.losses
        rows: list[list[list[Tensor]]] = [[] for _ in self.grads]
        for part in self._parts(group_size):
            filler = Materializer(counted, self.grads, self.leaves, part)
            buffers = [filler.fill(piece, part, ScratchBuffer()) for piece in counted]
            places = sorted(
                (p, n, offset)
                for n, piece in enumerate(counted)
                for p, offset in zip(piece.params, piece.offsets, strict=True)
            )
            for k, row in enumerate(rows):
                row.append([buffers[n][k, :, at : at + self.leaves[p].numel()] for p, n, at in places])
        return [[torch.cat(column) for column in zip(*row, strict=True)] for row in rows]

    @torch.no_grad()
    def toward(self, direction: Sequence[Tensor], group_size: int) -> Tensor:
        """Inner products (groups, L, K) with one gradient, given for every parameter."""
        counted = [piece for piece in self.pieces if piece.counted]
        along = [torch.cat([direction[p].flatten() for p in piece.params]).to(self.dtype) for piece in counted]
        rows = []
        for part in self._parts(group_size):
            filler = Materializer(counted, self.grads, self.leaves, part)
            total = torch.zeros(part.groups, self.labels, self.losses, dtype=self.dtype, device=self.device)
            with full_precision(self.device.type):
                for piece, d in zip(counted, along, strict=True):
                    for block in _blocks(part, self._at_once(piece)):
                        self.storage.reset()
                        total[block.within(part), piece.label] += (filler.fill(piece, block, self.storage) @ d).mT
            rows.append(total)
        return torch.cat(rows)

    def _parts(self, group_size: int) -> Iterator[SampleBlock]:
        """Parts of equal groups: the whole groups, and what is left over at the end."""
        groups, rest = divmod(self.size, group_size)
        if groups:
            yield SampleBlock(0, groups, group_size)
        if rest:
            yield SampleBlock(groups * group_size, 1, rest)

    def _at_once(self, *pieces: ParamBlock) -> int:
        """Groups whose gradients fit in the memory allowed for them, for all of some pieces together."""
        return max(1, self.memory // max(1, sum(piece.scratch for piece in pieces) * self.dtype.itemsize))

    def _instantiated(self) -> list[ParamBlock]:
        return [piece for piece in self.pieces if piece.counted and piece.choice == "instantiate"]

    def _grams(self, filler: Materializer, part: SampleBlock, keep: ScratchBuffer | None) -> tuple[Tensor, Buffers]:
        """Gram blocks (g, L, K, K) of some groups; and, if they are kept, the gradients they are products of."""
        gram = torch.zeros(part.groups, self.labels, self.losses, self.losses, dtype=self.dtype, device=self.device)
        buffers: Buffers = {}
        with full_precision(self.device.type):
            for number, piece in enumerate(self.pieces):
                kept = keep is not None and piece.choice == "instantiate"
                for block in _blocks(part, part.groups if kept else self._at_once(piece)) if piece.counted else ():
                    if piece.choice == "ghost":
                        product = ghost(piece, self.grads, block, self.dtype)
                    else:
                        if keep is None:
                            self.storage.reset()
                        buffer = filler.fill(piece, block, self.storage if keep is None else keep)
                        rows = buffer.transpose(0, 1)
                        product = rows @ rows.mT
                        if kept:
                            buffers[number] = buffer
                    gram[block.within(part), piece.label] += product
        return gram, buffers

    def _add_kept(self, total: Flat, buffers: Buffers, weights: Tensor) -> None:
        """Add what the per-sample gradients of a block give with weights (g, L, K)."""
        weights = weights.to(self.dtype)
        with full_precision(self.device.type):
            for n, buffer in buffers.items():
                rows, row = buffer.flatten(0, 1), weights[:, self.pieces[n].label].mT.reshape(-1)
                total[n] = torch.addmv(total[n], rows.mT, row, out=total[n]) if n in total else rows.mT @ row

    def _finish(self, total: Flat, weights: Tensor) -> list[Tensor]:
        """The update by weights (B, L, K), of which the kept gradients have given their part."""
        if self.update == "backward":
            return self.backward(weights)
        missing = {n: piece for n, piece in enumerate(self.pieces) if n not in total}
        whole = SampleBlock(0, 1, self.size)
        for number in sorted({piece.label for piece in missing.values()}):
            own = {n: piece for n, piece in missing.items() if piece.label == number}
            # what belongs to no Gram gets the mean of the weights
            mixed = self._mixed(list(own.values()), weights[:, number] if number >= 0 else weights.mean(1))
            filler = Materializer(list(own.values()), [mixed], self.leaves, whole)
            with full_precision(self.device.type):
                for n, piece in own.items():
                    total[n] = filler.fill(piece, whole, ScratchBuffer())[0, 0]
        grads: dict[int, Tensor] = {}
        for n, piece in enumerate(self.pieces):
            for p, offset in zip(piece.params, piece.offsets, strict=True):
                leaf = self.leaves[p]
                grads[p] = total[n][offset : offset + leaf.numel()].view(leaf.shape).to(leaf.dtype)
        return [grads[p] if p in grads else torch.zeros_like(leaf) for p, leaf in enumerate(self.leaves)]

    def _mixed(self, pieces: Sequence[ParamBlock], weights: Tensor) -> dict[Output, Tensor]:
        """``sum_k W_bk dL_k/d(output)`` of every output that some pieces need, for weights (B, K)."""
        outputs = {o for piece in pieces for target in piece.targets for _, outputs in target.uses for o in outputs}
        mixed: dict[Output, Tensor] = {}
        columns = weights.unbind(1)
        for output in outputs:
            for loss, column in zip(self.grads, columns, strict=True):
                if output in loss:
                    grad = accumulating(loss[output])
                    spread = along(column.to(grad.dtype), self.layouts[output], grad.ndim)
                    if output in mixed:
                        mixed[output].addcmul_(grad, spread)
                    else:
                        mixed[output] = grad * spread
        return mixed


def _blocks(part: SampleBlock, at_once: int) -> Iterator[SampleBlock]:
    """Consecutive blocks of a part, of at most ``at_once`` groups."""
    for first in range(0, part.groups, at_once):
        yield SampleBlock(part.start + first * part.size, min(at_once, part.groups - first), part.size)
