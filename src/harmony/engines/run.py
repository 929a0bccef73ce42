"""What an engine gives: a run of the encoder on some samples, and the gradients that are pulled back through it.

This is the whole interface between the engines and the rest of the library.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

Cotangent = Sequence[Tensor | None]
"""One tensor for each tracked embedding leaf, shaped like it; None where the loss does not reach the leaf."""

Reach = list[list[bool]]
"""For each tracked embedding leaf, which parameters its graph reaches."""

Pull = Callable[[Cotangent], list[Tensor]]
"""A cotangent -> its gradient, one tensor for each parameter."""

Weigh = Callable[[Tensor, range], Tensor]
"""Gram blocks (g, L, K, K) of a range of groups -> weights (g, L, K)."""


class Measurement(NamedTuple):
    """What is measured of some groups of samples, for L labels and K losses.

    Attributes:
        gram: Gram blocks (groups, L, K, K).
        products: Inner products (groups, L, K) with a direction, a given gradient; None without one.
    """

    gram: Tensor
    products: Tensor | None = None


Direction = Sequence[Tensor]
"""One gradient, a tensor for each parameter; only those of parameters in a Gram are read."""


class PerSample(Protocol):
    """Gradients of n samples under K losses, computed when they are needed. L labels of parameters have a Gram each."""

    def gram(self, group_size: int) -> Tensor:
        """Gram blocks (groups, L, K, K)."""

    def products(self, direction: Direction, group_size: int) -> Tensor:
        """Inner products (groups, L, K) with one gradient."""

    def combine(self, weights: Tensor) -> list[Tensor]:
        """``sum_bk W_bk g_b^k`` for weights (n, L, K): one gradient for each parameter."""

    def fused(self, group_size: int, weigh: Weigh) -> tuple[Tensor, list[Tensor]]:
        """Gram blocks (groups, L, K, K), and the sum by the weights that ``weigh`` makes of them."""


class Run(NamedTuple):
    """A run of the encoder on n samples.

    Attributes:
        leaves: The flattened embeddings, detached; tensors have leading axis n.
        spec: Tree specification of the embeddings.
        tracked: For each leaf, whether it depends on the parameters.
        pull: Pulls one cotangent back.
        per_sample: K cotangents, and whether ``fused`` will be called -> gradients of single samples.
        reaches: Called once, before the others: which parameters each tracked leaf reaches.
    """

    leaves: list[Any]
    spec: Any
    tracked: list[bool]
    pull: Pull
    per_sample: Callable[[Sequence[Cotangent], bool], PerSample]
    reaches: Callable[[], Reach]


def union(reaches: Iterable[Reach]) -> Reach:
    """What the embeddings reach in any of several runs."""
    return [[any(flags) for flags in zip(*leaves, strict=True)] for leaves in zip(*reaches, strict=True)]


def joined(blocks: Sequence[Measurement]) -> Measurement:
    """Measurement of consecutive groups, put together."""
    products = [block.products for block in blocks if block.products is not None]
    return Measurement(torch.cat([block.gram for block in blocks]), torch.cat(products) if products else None)


def narrow(cotangent: Cotangent, rows: Any) -> Cotangent:
    """The cotangent of some samples, or another part of its tensors."""
    return [None if c is None else c[rows] for c in cotangent]


def narrow_all(cotangents: Sequence[Cotangent], rows: Any) -> list[Cotangent]:
    """``narrow``, loss by loss."""
    return [narrow(cotangent, rows) for cotangent in cotangents]


def mix(cotangents: Sequence[Cotangent], weights: Tensor) -> Cotangent:
    """``sum_k W_bk c_bk``: one cotangent out of K; weights (B, K)."""
    mixed: list[Tensor | None] = []
    for leaves in zip(*cotangents, strict=True):
        terms = [
            c * w.to(c.dtype).view(-1, *[1] * (c.ndim - 1))
            for c, w in zip(leaves, weights.unbind(1), strict=True)
            if c is not None
        ]
        mixed.append(functools.reduce(torch.add, terms) if terms else None)
    return mixed


def by_label(grads: Sequence[Sequence[Tensor]], label: Sequence[int]) -> list[list[list[Tensor]]]:
    """Sort K lists of gradients by the label of each parameter: for each label, K lists."""
    return [
        [[g for g, number in zip(leaves, label, strict=True) if number == wanted] for leaves in grads]
        for wanted in range(max(label) + 1)
    ]


def pull_mixed(pull: Pull, cotangents: Sequence[Cotangent], weights: Tensor, label: Sequence[int]) -> list[Tensor]:
    """Pull the weighted sum of K cotangents back, with the weights (B, L, K) of each parameter's own label."""
    return pull_labelled(lambda w: pull(mix(cotangents, w)), weights, label)


def pull_labelled(pull: Callable[[Tensor], list[Tensor]], weights: Tensor, label: Sequence[int]) -> list[Tensor]:
    """One backward pass for each label; a parameter without a label gets the mean of the weights (B, L, K)."""
    if weights.shape[1] == 1:
        return pull(weights[:, 0])
    grads = {number: pull(weights[:, number] if number >= 0 else weights.mean(1)) for number in sorted(set(label))}
    return [grads[number][p] for p, number in enumerate(label)]
