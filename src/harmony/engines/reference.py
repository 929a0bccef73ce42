"""Slow and plain ways to run an encoder: the definition on ``torch.func``, a loop over samples, one ordinary pass."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from harmony.definition import encode_samples, sum_groups
from harmony.engines.call import EncoderCall
from harmony.engines.forward import (
    ForwardPass,
    check_leaves,
    forward,
    join,
    per_sample_semantics,
    reach,
    require_tracked,
)
from harmony.engines.paths import paths
from harmony.engines.precision import accumulating, full_precision, inner_products
from harmony.engines.random import restore, snapshot
from harmony.engines.run import (
    Cotangent,
    Direction,
    Measurement,
    PerSample,
    Pull,
    Reach,
    Run,
    Weigh,
    by_label,
    narrow,
    pull_mixed,
    union,
)


def run_vmap(call: EncoderCall) -> Run:
    """Run the encoder by ``harmony.definition``: every sample sees its own copy of the selected parameters."""
    mapped = call.mapped
    template: list[Any] = []
    spec: list[Any] = []
    reached: list[Reach] = []

    def one(params: list[Tensor], samples: list[Tensor]) -> tuple[Tensor, ...]:
        rows = iter(samples)
        batch = [next(rows)[None] if m else leaf for leaf, m in zip(call.batch, mapped, strict=True)]
        leaves, tree = call.run(params, batch)
        check_leaves(leaves, tree, 1)
        spec[:] = [tree]
        template[:] = [... if isinstance(leaf, Tensor) else leaf for leaf in leaves]  # ... is where a tensor goes
        return tuple(leaf[0] for leaf in leaves if isinstance(leaf, Tensor))

    def inspect(features: list[Tensor], params: list[Tensor]) -> None:
        require_tracked([bool(features)])
        reached.append(reach(features, params))

    samples = [leaf for leaf, m in zip(call.batch, mapped, strict=True) if m]
    # Fused attention has no batching rule for its backward on every device; the math backend has.
    with per_sample_semantics(vmapped=True), sdpa_kernel(SDPBackend.MATH):
        encoded = encode_samples(one, call.params, samples, call.selected, inspect)
    tensors, flags = iter(encoded.merge(encoded.features)), iter(encoded.tracked)
    leaves = [next(tensors) if leaf is ... else leaf for leaf in template]
    tracked = [next(flags) if leaf is ... else False for leaf in template]

    def rows(cotangent: Cotangent) -> list[Tensor]:
        pairs = zip(cotangent, encoded.features, strict=True)
        return encoded.pull([torch.zeros_like(f) if c is None else c.to(f.dtype) for c, f in pairs])

    return _run_by_rows(leaves, spec[0], tracked, rows, lambda: reached[0], call)


def run_loop(call: EncoderCall) -> Run:
    """Run the encoder sample by sample in a Python loop: slow, and exact for whatever autograd can differentiate."""
    runs = [run_plain(call.select(slice(b, b + 1))) for b in range(call.size)]
    selected = call.selected  # wrt="shared" narrows it when the losses are known

    def rows(cotangent: Cotangent) -> list[Tensor]:
        pulled = [run.pull(narrow(cotangent, slice(b, b + 1))) for b, run in enumerate(runs)]
        stacks = [torch.stack(grads) for grads in zip(*pulled, strict=True)]
        return [g if s else g.sum(0) for g, s in zip(stacks, selected, strict=True)]

    leaves = join([run.leaves for run in runs])
    return _run_by_rows(leaves, runs[0].spec, runs[0].tracked, rows, lambda: union(run.reaches() for run in runs), call)


def run_plain(call: EncoderCall, inspect: Callable[[ForwardPass], None] | None = None) -> Run:
    """Run the encoder once on all samples with ordinary autograd: it has no gradients of single samples.

    Args:
        call: The call.
        inspect: Sees the pass, and may raise.
    """
    size, state = call.size, snapshot(call.params)
    result = forward(call)
    behind = paths(result.outputs)
    result.require_paths(behind, call)
    if inspect is not None:
        inspect(result)
    if size == 1 and any("BatchNorm" in op for op in behind.ops):
        # Torch misreads a gradient of one sample with channels last: give it two.
        restore(state)
        result = forward(call.doubled())

    def pull(cotangent: Cotangent) -> list[Tensor]:
        copies = len(result.outputs[0]) // size
        zeros = [[] if c is None else [torch.zeros_like(c)] * (copies - 1) for c in cotangent]
        pairs = zip(cotangent, zeros, strict=True)
        return result.pull([None if c is None else torch.cat([c, *z]) for c, z in pairs] if copies > 1 else cotangent)

    def per_sample(cotangents: Sequence[Cotangent], fused: bool) -> PerSample:
        raise AssertionError("a plain run has no per-sample gradients")

    leaves = [leaf[:size] if isinstance(leaf, Tensor) else leaf for leaf in result.detached]
    return Run(leaves, result.spec, result.tracked, pull, per_sample, result.reaches)


def as_one_group(run: Run, call: EncoderCall) -> Run:
    """A run on samples that are one group, or a part of one: its gradients are those of ordinary backward passes."""

    def per_sample(cotangents: Sequence[Cotangent], fused: bool) -> PerSample:
        grads = [[g[None] for g, s in zip(run.pull(c), call.selected, strict=True) if s] for c in cotangents]
        return MaterializedGradients(grads, call, cotangents, run.pull)

    return run._replace(per_sample=per_sample)


def _run_by_rows(
    leaves: list[Any],
    spec: Any,
    tracked: list[bool],
    rows: Callable[[Cotangent], list[Tensor]],
    reaches: Callable[[], Reach],
    call: EncoderCall,
) -> Run:
    """A run out of a function that gives gradients (n, *shape) of the selected parameters, (*shape) of the others."""
    selected = call.selected

    def pull(cotangent: Cotangent) -> list[Tensor]:
        return [g.sum(0) if s else g for g, s in zip(rows(cotangent), selected, strict=True)]

    def per_sample(cotangents: Sequence[Cotangent], fused: bool) -> PerSample:
        grads = [[g for g, s in zip(rows(c), call.selected, strict=True) if s] for c in cotangents]
        return MaterializedGradients(grads, call, cotangents, pull)

    return Run(leaves, spec, tracked, pull, per_sample, reaches)


class MaterializedGradients:
    """Gradients of n samples held as tensors: K lists of leaves (n, *shape), one for each parameter in a Gram.

    A group that was differentiated as one has leaves (1, *shape).
    """

    def __init__(
        self, grads: list[list[Tensor]], call: EncoderCall, cotangents: Sequence[Cotangent], pull: Pull
    ) -> None:
        self.grads = grads
        self.label = call.label
        self.size = call.size
        self.cotangents = cotangents
        self.pull = pull

    def gram(self, group_size: int) -> Tensor:
        """Gram blocks (groups, L, K, K)."""
        return torch.stack([inner_products(sums) for sums in self.sums(group_size)], 1)

    def sums(self, group_size: int) -> list[list[list[Tensor]]]:
        """Gradients summed over each group: for each label, K lists of leaves (groups, *shape)."""
        sums = [[sum_groups(leaf, group_size) for leaf in leaves] for leaves in self.grads]
        return by_label(sums, [number for number in self.label if number >= 0])

    def products(self, direction: Direction, group_size: int) -> Tensor:
        """Inner products (groups, L, K) with one gradient, given for every parameter."""
        return _products_of_rows(self.sums(group_size), self.label, direction)

    def combine(self, weights: Tensor) -> list[Tensor]:
        """The update by weights (n, L, K), over all parameters: backward passes."""
        return pull_mixed(self.pull, self.cotangents, weights, self.label)

    def fused(self, group_size: int, weigh: Weigh) -> tuple[Tensor, list[Tensor]]:
        """Gram blocks and update."""
        gram = self.gram(group_size)
        weights = weigh(gram, range(len(gram))).repeat_interleave(group_size, 0)
        return gram, self.combine(weights[: self.size])


def measure_rows(rows: list[list[list[Tensor]]], label: Sequence[int], direction: Direction | None) -> Measurement:
    """Measurement of gradients held as tensors: for each label, K lists of leaves (groups, *shape)."""
    gram = torch.stack([inner_products(losses) for losses in rows], 1)
    return Measurement(gram, None if direction is None else _products_of_rows(rows, label, direction))


def _products_of_rows(rows: list[list[list[Tensor]]], label: Sequence[int], direction: Direction) -> Tensor:
    """Inner products (groups, L, K) with one gradient."""
    with full_precision(direction[0].device.type):
        columns = [
            torch.stack([_inner(grads, vectors) for grads in losses], 1)
            for losses, [vectors] in zip(rows, by_label([direction], label), strict=True)
        ]
    return torch.stack(columns, 1)


def _inner(grads: Sequence[Tensor], vectors: Sequence[Tensor]) -> Tensor:
    """Inner products (n,) of gradients with leaves (n, *shape) with one."""
    pairs = zip(grads, vectors, strict=True)
    return torch.stack([accumulating(g).flatten(1) @ accumulating(v).flatten() for g, v in pairs]).sum(0)
