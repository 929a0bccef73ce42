"""Encode a batch with one of the engines, in chunks of samples where memory asks for it."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from harmony.engines.call import EncoderCall
from harmony.engines.errors import MixedSamplesError, UnsupportedError
from harmony.engines.fallback import (
    Runner,
    fall_back,
    require_pair_apart,
    run_apart,
    run_reference,
    warn_of_loop,
)
from harmony.engines.forward import embed, forward, join
from harmony.engines.options import Engine
from harmony.engines.random import restore, snapshot
from harmony.engines.reference import as_one_group, measure_rows, run_loop, run_plain
from harmony.engines.run import (
    Cotangent,
    Direction,
    Measurement,
    PerSample,
    Reach,
    Run,
    by_label,
    joined,
    narrow,
    narrow_all,
    pull_mixed,
    union,
)
from harmony.engines.tape.engine import run_tape

WeighMeasured = Callable[[Measurement, range], Tensor]
"""Measurement of a range of groups -> weights (g, L, K)."""

Combine = Callable[[Tensor], list[Tensor]]
"""Weights (B, L, K) -> the weighted sum of the per-sample gradients, a tensor for each parameter."""


class EncodedBatch:
    """A batch of B samples that was encoded: embeddings, and what is pulled back from them.

    With a chunk size smaller than the batch the embeddings come first, without their graph; each chunk is encoded
    again, with the same random numbers, when it is differentiated. L labels of parameters have a Gram each.

    Attributes:
        leaves: The flattened embeddings, detached; tensors have leading axis B.
        spec: Tree specification of the embeddings.
        tracked: For each leaf, whether it depends on the parameters.
    """

    def __init__(self, call: EncoderCall, engine: Engine, *, per_sample: bool) -> None:
        """Encode.

        Args:
            call: The call.
            engine: How.
            per_sample: Whether gradients of single samples will be asked for. Without, the encoder runs on whole chunks
                with ordinary autograd, which is all that ``pull`` and ``gram_of_rows`` need.
        """
        self.engine = engine
        self.blocks = list(whole_groups(call.size, call.group_size, engine.chunk_size))
        self.chunks = [chunk for block in self.blocks for chunk in block]
        single = len(self.chunks) == 1
        self.call = call = call._replace(together=single and (not per_sample or call.size <= call.group_size))
        self._states = [] if single else [call.state()]
        self._reached: list[Reach] = []
        versions = call.versions()
        if len(self.chunks) == call.size > 1 and not (per_sample and engine.method in ("vmap", "loop")):
            require_pair_apart(call, engine.verify)
        run, self._runner = _first_run(call if single else call.select(self.chunks[0]), engine, per_sample)
        self.spec, self.tracked = run.spec, run.tracked
        parts = [run.leaves]
        if not single:
            if call.shared_only:  # each chunk may reach other parameters: experts
                self._reached.append(run.reaches())
            del run  # one graph at a time
            parts += [self._embed(chunk) for chunk in self.chunks[1:-1]]
            # The graph of the last chunk stays, so that what a module leaves behind for the losses is seen to have one.
            self._states.append(call.state(self._states[-1]))
            run = self._record(self.chunks[-1])
            parts.append(run.leaves)
            call.require_versions(versions)
        self._last: list[Run] = [run]
        self.leaves = join(parts)

    def reaches(self) -> Reach:
        """Which parameters each tracked leaf reaches; called before the others."""
        return union([*self._reached, self._last[0].reaches()])

    def pull(self, cotangent: Cotangent) -> list[Tensor]:
        """The gradient of one cotangent, leaves (B, ...): a tensor for each parameter."""
        total: list[Tensor] = []
        for chunk in reversed(self.chunks):
            total = _add(total, self._run(chunk).pull(narrow(cotangent, chunk)))
        return total

    def gram(self, cotangents: Sequence[Cotangent], direction: Direction | None = None) -> tuple[Measurement, Combine]:
        """Measurement of K cotangents, and the weighted sum of the gradients behind them."""
        if len(self.chunks) == 1:
            gradients = self._run(self.chunks[0]).per_sample(cotangents, False)
            return self._measure(gradients, direction), gradients.combine
        blocks = [self._measure_block(block, cotangents, direction) for block in reversed(self.blocks)]
        return joined(blocks[::-1]), lambda weights: pull_mixed(self.pull, cotangents, weights, self.call.label)

    def fused(
        self, cotangents: Sequence[Cotangent], weigh: WeighMeasured, direction: Direction | None = None
    ) -> tuple[Measurement, list[Tensor]]:
        """Measurement, and the sum by the weights made of them: block by block, each encoded once."""
        parts: list[Measurement] = []
        total: list[Tensor] = []
        for block in reversed(self.blocks):
            first = block[0].start // self.call.group_size
            if len(block) == 1:
                gradients = self._run(block[0]).per_sample(narrow_all(cotangents, block[0]), True)
                products = None if direction is None else gradients.products(direction, self.call.group_size)
                gram, grads = gradients.fused(
                    self.call.group_size, functools.partial(_weigh_part, weigh, products, first)
                )
                del gradients  # and the graph behind it, before the next chunk is encoded
                total = _add(total, grads)
                parts.append(Measurement(gram, products))
            else:
                parts.append(self._measure_block(block, cotangents, direction))
                weights = weigh(parts[-1], range(first, first + 1))
                for chunk in reversed(block):
                    rows = weights.expand(chunk.stop - chunk.start, -1, -1)
                    sent = narrow_all(cotangents, chunk)
                    total = _add(total, pull_mixed(self._run(chunk).pull, sent, rows, self.call.label))
        return joined(parts[::-1]), total

    def gram_of_rows(
        self,
        rows: Callable[[range], Sequence[Cotangent]],
        groups: int,
        sum_processes: Callable[[Sequence[Tensor]], list[Tensor]],
        direction: Direction | None = None,
    ) -> Measurement:
        """Measurement of gradients of which every row is pulled through the encoders of the whole batch.

        Args:
            rows: A range of groups -> K cotangents with leaves (n, B, ...), one row for each group.
            groups: Number of groups.
            sum_processes: Adds gradients up over the processes.
            direction: A gradient to make inner products with; None for none.
        """
        step = self.engine.chunk_size or 1
        label = [number for number in self.call.label if number >= 0]
        blocks = []
        for start in range(0, groups, step):
            block = range(start, min(start + step, groups))
            grads = [sum_processes(leaves) for leaves in self._pull_rows(rows(block), len(block))]
            blocks.append(measure_rows(by_label(grads, label), self.call.label, direction))
        return joined(blocks)

    def _pull_rows(self, cotangents: Sequence[Cotangent], count: int) -> list[list[Tensor]]:
        """Gradients (count, *shape) of the selected parameters, for K cotangents with leaves (count, B, ...)."""
        totals: list[list[Tensor]] = [[]] * len(cotangents)
        for chunk in reversed(self.chunks):
            run = self._run(chunk)
            for k, cotangent in enumerate(cotangents):
                pulled = [run.pull(narrow(narrow(cotangent, row), chunk)) for row in range(count)]
                columns = zip(zip(*pulled, strict=True), self.call.selected, strict=True)
                totals[k] = _add(totals[k], [torch.stack(grads) for grads, selected in columns if selected])
            del run
        return totals

    def _measure(self, gradients: PerSample, direction: Direction | None) -> Measurement:
        """What is measured of some gradients."""
        size = self.call.group_size
        return Measurement(gradients.gram(size), None if direction is None else gradients.products(direction, size))

    def _measure_block(
        self, block: list[slice], cotangents: Sequence[Cotangent], direction: Direction | None
    ) -> Measurement:
        """Measurement of some groups; the gradients of a group that is larger than a chunk are added up first."""
        if len(block) == 1:
            gradients = self._run(block[0]).per_sample(narrow_all(cotangents, block[0]), False)
            return self._measure(gradients, direction)
        totals: list[list[Tensor]] = [[]] * len(cotangents)
        for chunk in reversed(block):
            run = self._run(chunk)
            totals = [_add(t, run.pull(narrow(c, chunk))) for t, c in zip(totals, cotangents, strict=True)]
            del run
        rows = by_label([[g[None] for g in total] for total in totals], self.call.label)
        return measure_rows(rows, self.call.label, direction)

    def _run(self, chunk: slice) -> Run:
        """The run of one chunk: the graph that is there (so walk the chunks from the last), or the same run again."""
        if chunk is self.chunks[-1] and self._last:
            return self._last[0] if len(self.chunks) == 1 else self._last.pop()
        self._last.clear()
        with self.call.replaying(self._states[self.chunks.index(chunk)]):
            return self._record(chunk)

    def _record(self, chunk: slice) -> Run:
        """A run of one chunk, from the state of the encoder as it is."""
        call = self.call.select(chunk)
        state = snapshot(call.params)
        try:
            return self._runner.run(call)
        except (UnsupportedError, MixedSamplesError) as error:
            # The first chunk could be recorded and this one cannot. A loop gives the same numbers, unless drawn ones.
            drawn = not snapshot(call.params).equal(state)
            if self.engine.method != "auto" or drawn or len(self.blocks) < len(self.chunks):
                raise
            return fall_back(call, error, self.engine.verify)[0]

    def _embed(self, chunk: slice) -> list[Any]:
        """Embeddings of a chunk, with the random numbers that its run draws; and what they reach, if that matters."""
        call = self.call.select(chunk)
        self._states.append(self.call.state(self._states[-1]))
        if self._runner.ordinary and not call.shared_only:
            return embed(call)
        if self._runner.ordinary:
            result = forward(call)
            self._reached.append(result.reaches())
            return result.detached
        run = self._runner.run(call)
        self._reached.append(run.reaches())
        return run.leaves


def _first_run(call: EncoderCall, engine: Engine, per_sample: bool) -> tuple[Run, Runner]:
    """Run the first chunk with the engine that was asked for, or the first that can."""
    if not per_sample:
        plain: Callable[[EncoderCall], Run] = (
            run_plain if call.together else functools.partial(run_apart, verify=engine.verify)
        )
        return plain(call), Runner(plain, ordinary=True)
    if engine.method == "loop":
        return run_loop(call), Runner(run_loop)
    if engine.method == "vmap":
        run, reference, why_no_vmap = run_reference(call)
        if why_no_vmap:
            warn_of_loop(why_no_vmap)
        return run, Runner(reference)
    random, versions = snapshot(call.params), call.versions()
    runner = Runner(functools.partial(_run_groups, engine=engine), ordinary=True)
    try:
        return runner.run(call), runner
    except (UnsupportedError, MixedSamplesError) as error:
        if engine.method == "tape":
            raise
        call.require_versions(versions)
        restore(random)
        with call.with_buffers(call.state()):  # the plain pass has moved them, as one pass should
            return fall_back(call, error, engine.verify)


def _run_groups(call: EncoderCall, engine: Engine) -> Run:
    """A run on the tape; where one group takes all the samples, ordinary backward passes are all there is to do."""
    if call.size <= call.group_size:
        return as_one_group(run_plain(call) if call.together else run_apart(call, engine.verify), call)
    return run_tape(call, engine)


def _weigh_part(weigh: WeighMeasured, products: Tensor | None, first: int, gram: Tensor, groups: range) -> Tensor:
    """Weights of some of a block's groups, which are numbered from ``first`` on in the batch."""
    own = None if products is None else products[groups.start : groups.stop]
    return weigh(Measurement(gram, own), range(first + groups.start, first + groups.stop))


def _add(total: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    return [a + b for a, b in zip(total, grads, strict=True)] if total else grads


def whole_groups(size: int, group_size: int, chunk_size: int | None) -> Iterator[list[slice]]:
    """Cut the batch into blocks of whole groups, and each block into chunks of at most ``chunk_size`` samples.

    A block has several chunks only where one group is larger than a chunk.
    """
    if chunk_size is None or chunk_size >= size:
        yield [slice(0, size)]
        return
    block = max(chunk_size // group_size, 1) * group_size
    for start in range(0, size, block):
        stop = min(start + block, size)
        yield [slice(s, min(s + chunk_size, stop)) for s in range(start, stop, chunk_size)]
