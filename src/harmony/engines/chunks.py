"""Encode a batch with one of the engines, in chunks of samples where memory asks for it."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from harmony.engines.apart import require_pair_apart, trace_apart
from harmony.engines.encoded import Cotangent, Encoded, Reach, Sum, Trace, Weigh, by_label, pull_mixed
from harmony.engines.fallback import Run, fall_back, run_reference, warn_of_loop
from harmony.engines.precision import inner_products
from harmony.engines.random import restore, snapshot
from harmony.engines.tape.engine import trace_tape
from harmony.engines.tape.errors import MixedSamplesError, UnsupportedError
from harmony.engines.tape.materialize import ScratchBuffer
from harmony.engines.tape.verify import Verify
from harmony.engines.trace import (
    Inputs,
    detached,
    either,
    join,
    of_one_group,
    per_sample_semantics,
    reach,
    run_batch,
    trace_batch,
    trace_loop,
)

MEMORY = 256 * 2**20
"""Bytes for kept per-sample gradients, unless told otherwise."""


class Options(NamedTuple):
    """How per-sample gradients are computed; see ``gram_vjp``."""

    method: str = "auto"
    update: str = "auto"
    memory: int = MEMORY
    group_size: int = 1
    chunk_size: int | None = None
    verify: Verify = "auto"


def encode_batch(inputs: Inputs, options: Options, *, per_sample: bool) -> Encoded:
    """Encode a batch, ready to pull cotangents back.

    With a chunk size smaller than the batch the embeddings come first, without their graph; each chunk is encoded
    again, with the same random numbers, when it is differentiated.

    Args:
        inputs: The flattened call; ``inputs.label`` marks the parameters each Gram is taken over.
        options: Engine, groups, chunks.
        per_sample: Whether gradients of single samples will be asked for (``gram``, ``fused``). Without, the encoder
            runs on whole chunks with ordinary autograd, which is all that ``pull`` and ``gram_of_rows`` need.
    """
    group_size = options.group_size
    blocks = list(whole_groups(inputs.size, group_size, options.chunk_size))
    chunks = [chunk for block in blocks for chunk in block]
    if len(chunks) == 1:
        inputs = inputs._replace(together=not per_sample or inputs.size <= group_size)
    states = [inputs.state()] if len(chunks) > 1 else []
    versions = inputs.versions()
    if len(chunks) == inputs.size > 1 and not (per_sample and options.method in ("vmap", "loop")):
        require_pair_apart(inputs, options.verify)
    first, run = _first(inputs if len(chunks) == 1 else inputs.narrow(chunks[0]), options, per_sample)
    parts, spec, tracked = [first.leaves], first.spec, first.tracked
    kept = [first]
    # Each chunk may reach other parameters (experts): those that all losses reach are known after the last.
    shared = inputs.wrt == "shared"
    reached = [first.reaches()] if shared and len(chunks) > 1 else []
    del first

    def recorded(chunk: slice) -> Trace:
        """A run of one chunk, from the state of the encoder as it is."""
        state = snapshot(inputs.params)
        try:
            return run(inputs.narrow(chunk))
        except (UnsupportedError, MixedSamplesError) as error:
            # The first chunk could be recorded and this one cannot. A loop gives the same numbers, unless drawn ones.
            drawn = not snapshot(inputs.params).equal(state)
            if options.method != "auto" or drawn or len(blocks) < len(chunks):
                raise
            return fall_back(inputs.narrow(chunk), error, options.verify)[0]

    if len(chunks) > 1:
        kept.clear()  # one graph at a time
        for chunk in chunks[1:-1]:
            states.append(inputs.state(states[-1]))
            leaves, reaches = _embed(inputs.narrow(chunk), run, shared)
            parts.append(leaves)
            reached += reaches
        # The graph of the last chunk stays, so that what a module leaves behind for the losses is seen to have one.
        states.append(inputs.state(states[-1]))
        kept.append(recorded(chunks[-1]))
        parts.append(kept[0].leaves)
        inputs.require_versions(versions)

    def traced(chunk: slice) -> Trace:
        """The run of one chunk: the graph there is (so go through them from the last), or the same run again."""
        if chunk is chunks[-1] and kept:
            return kept[0] if len(chunks) == 1 else kept.pop()
        kept.clear()
        with inputs.replaying(states[chunks.index(chunk)]):
            return recorded(chunk)

    def unflatten(grads: list[Tensor]) -> Any:
        return pytree.tree_unflatten(grads, inputs.params_spec)

    def group_sums(block: list[slice], cotangents: Sequence[Cotangent]) -> Tensor:
        """Gram of one group that is larger than a chunk: its gradients have to be added up first."""
        total: list[list[list[Tensor]]] = []
        for chunk in reversed(block):
            sums = traced(chunk).per_sample(narrow_all(cotangents, chunk), False).sums(chunk.stop - chunk.start)
            total = [_add(a, b) for a, b in zip(total, sums, strict=True)] if total else sums
        return torch.stack([inner_products(of_label) for of_label in total], 1)

    def gram(cotangents: Sequence[Cotangent]) -> tuple[Tensor, Callable[[Tensor], Any]]:
        if len(chunks) == 1:
            gradients = traced(chunks[0]).per_sample(cotangents, False)
            return gradients.gram(group_size), lambda weights: unflatten(gradients.combine(weights))
        grams = [
            traced(block[0]).per_sample(narrow_all(cotangents, block[0]), False).gram(group_size)
            if len(block) == 1
            else group_sums(block, cotangents)
            for block in reversed(blocks)
        ]
        return torch.cat(grams[::-1]), lambda weights: unflatten(pull_mixed(pulled, cotangents, weights, inputs.label))

    def fused(cotangents: Sequence[Cotangent], weigh: Weigh) -> tuple[Tensor, Any]:
        grams: list[Tensor] = []
        total: list[list[Tensor]] = []
        for block in reversed(blocks):
            shifted = functools.partial(_shifted, weigh, block[0].start // group_size)
            if len(block) == 1:
                gradients = traced(block[0]).per_sample(narrow_all(cotangents, block[0]), True)
                block_gram, grads = gradients.fused(group_size, shifted)
                del gradients  # and the graph behind it, before the next chunk is encoded
                total = _add(total, [grads])
            else:
                block_gram = group_sums(block, cotangents)
                weights = shifted(block_gram, range(1))
                for chunk in reversed(block):
                    rows = weights.expand(chunk.stop - chunk.start, -1, -1)
                    parts = narrow_all(cotangents, chunk)
                    total = _add(total, [pull_mixed(traced(chunk).pull, parts, rows, inputs.label)])
            grams.append(block_gram)
        return torch.cat(grams[::-1]), unflatten(total[0])

    def gram_of_rows(rows: Callable[[range], Sequence[Cotangent]], groups: int, add_up: Sum) -> Tensor:
        step = options.chunk_size or 1
        grams = []
        for block in (range(start, min(start + step, groups)) for start in range(0, groups, step)):
            cotangents = rows(block)  # leaves (len(block), B, ...)
            total: list[list[Tensor]] = []
            for chunk in reversed(chunks):
                trace = traced(chunk)
                leaves = [
                    [_selected(trace.pull(narrow(_row(c, r), chunk)), inputs) for r in range(len(block))]
                    for c in cotangents
                ]
                del trace
                total = _add(total, [[torch.stack(leaf) for leaf in zip(*k, strict=True)] for k in leaves])
            total = [add_up(leaves) for leaves in total]
            selected = [number for number in inputs.label if number >= 0]
            grams.append(torch.stack([inner_products(k) for k in by_label(total, selected)], 1))
        return torch.cat(grams)

    def toward(cotangents: Sequence[Cotangent], direction: Sequence[Tensor]) -> Tensor:
        rows = []
        for block in reversed(blocks):
            found = [
                traced(chunk).per_sample(narrow_all(cotangents, chunk), False).toward(direction, group_size)
                for chunk in reversed(block)
            ]
            rows.append(found[0] if len(found) == 1 else torch.stack([f.sum(0) for f in found]).sum(0, keepdim=True))
        return torch.cat(rows[::-1])

    def pulled(cotangent: Cotangent) -> list[Tensor]:
        total: list[list[Tensor]] = []
        for chunk in reversed(chunks):
            total = _add(total, [traced(chunk).pull(narrow(cotangent, chunk))])
        return total[0]

    return Encoded(
        leaves=join(parts),
        spec=spec,
        tracked=tracked,
        gram=gram,
        fused=fused,
        gram_of_rows=gram_of_rows,
        toward=toward,
        pull=lambda cotangent: unflatten(pulled(cotangent)),
        reaches=lambda: either([*reached, kept[0].reaches()]),
    )


def _first(inputs: Inputs, options: Options, per_sample: bool) -> tuple[Trace, Run]:
    """Run the first chunk with the engine that was asked for, or the first that can."""
    if not per_sample:
        run: Run = trace_batch if inputs.together else functools.partial(trace_apart, verify=options.verify)
        return run(inputs), run
    if options.method == "loop":
        return trace_loop(inputs), trace_loop
    if options.method == "vmap":
        trace, run, why_no_vmap = run_reference(inputs)
        if why_no_vmap:
            warn_of_loop(why_no_vmap)
        return trace, run
    random, versions = snapshot(inputs.params), inputs.versions()
    run = functools.partial(_taped, options=options, storage=ScratchBuffer())
    try:
        return run(inputs), run
    except (UnsupportedError, MixedSamplesError) as error:
        if options.method == "tape":
            raise
        inputs.require_versions(versions)
        restore(random)
        with inputs.with_buffers(inputs.state()):  # the plain pass has moved them, as one pass should
            return fall_back(inputs, error, options.verify)


def _taped(inputs: Inputs, options: Options, storage: ScratchBuffer) -> Trace:
    """A run on the tape; where one group takes all the samples, ordinary backward passes are all there is to do."""
    if inputs.size <= options.group_size:
        return of_one_group(trace_batch(inputs) if inputs.together else trace_apart(inputs, options.verify), inputs)
    return trace_tape(inputs, options, storage)


def _embed(inputs: Inputs, run: Run, shared: bool) -> tuple[list[Any], list[Reach]]:
    """Embeddings of a chunk, and what they reach if that is asked for.

    They are computed in the way that ``run`` does it, so that they draw the same random numbers.
    """
    if run is not trace_batch and getattr(run, "func", None) not in (_taped, trace_apart):
        trace = run(inputs)
        return trace.leaves, [trace.reaches()]
    if shared:  # the graph tells
        params = inputs.tracked_params()
        plain = run_batch(inputs, params)
        return detached(plain.leaves), [reach(plain.outputs, params)]
    with torch.no_grad(), per_sample_semantics():
        leaves, _ = inputs.call(inputs.params, inputs.batch)
    return detached(leaves), []


def _shifted(weigh: Weigh, groups: int, gram: Tensor, part: range) -> Tensor:
    """Weights of a block's groups, which are numbered from ``groups`` on in the batch."""
    return weigh(gram, range(groups + part.start, groups + part.stop))


def _selected(grads: list[Tensor], inputs: Inputs) -> list[Tensor]:
    return [g for g, s in zip(grads, inputs.selected, strict=True) if s]


def whole_groups(size: int, group_size: int, chunk_size: int | None) -> Iterator[list[slice]]:
    """Cut the batch into blocks of whole groups, and each block into chunks of at most ``chunk_size`` samples.

    A block has several chunks only where one group is larger than a chunk.
    """
    if chunk_size is None or chunk_size >= size:
        yield [slice(0, size)]
        return
    chunk = chunk_size
    block = max(chunk // group_size, 1) * group_size
    for start in range(0, size, block):
        stop = min(start + block, size)
        yield [slice(s, min(s + chunk, stop)) for s in range(start, stop, chunk)]


def narrow(cotangent: Cotangent, chunk: slice) -> Cotangent:
    """The cotangents of a chunk of samples."""
    return [None if c is None else c[chunk] for c in cotangent]


def narrow_all(cotangents: Sequence[Cotangent], chunk: slice) -> list[Cotangent]:
    """The cotangents of a chunk of samples, loss by loss."""
    return [narrow(c, chunk) for c in cotangents]


def _row(cotangent: Cotangent, row: int) -> Cotangent:
    return [None if c is None else c[row] for c in cotangent]


def _add(total: list[list[Tensor]], more: list[list[Tensor]]) -> list[list[Tensor]]:
    if not total:
        return more
    return [[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(total, more, strict=True)]
