"""What an engine returns: embeddings, and what can be pulled back from them to the parameters."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

PyTree = Any
Cotangent = Sequence[Tensor | None]
"""One tensor per tracked embedding leaf, shaped like it; None where the loss does not reach the leaf."""

Weigh = Callable[[Tensor, range], Tensor]
"""Gram blocks (g, K, K) of a range of groups -> weights (g, K)."""


class PerSample(Protocol):
    """Gradients of n samples under K losses, computed when and as far as they are needed."""

    def gram(self, group_size: int) -> Tensor:
        """Gram blocks (groups, K, K)."""

    def sums(self, group_size: int) -> list[list[Tensor]]:
        """Gradients summed over each group: K lists of tensors (groups, ...)."""

    def combine(self, weights: Tensor) -> list[Tensor]:
        """``sum_bk W_bk g_b^k`` for weights (n, K): one gradient per parameter leaf."""

    def fused(self, group_size: int, weigh: Weigh) -> tuple[Tensor, list[Tensor]]:
        """Gram blocks (groups, K, K), and the combination by the weights that ``weigh`` makes of them."""


class Trace(NamedTuple):
    """A run of the encoder on n samples.

    Attributes:
        leaves: The flattened embeddings, detached; tensors have leading axis n.
        spec: Tree specification of the embeddings.
        tracked: For each leaf, whether it depends on the parameters.
        pull: One cotangent -> its gradient, one tensor per parameter leaf.
        per_sample: K cotangents, and whether ``fused`` will be called -> gradients of single samples.
    """

    leaves: list[Any]
    spec: Any
    tracked: list[bool]
    pull: Callable[[Cotangent], list[Tensor]]
    per_sample: Callable[[Sequence[Cotangent], bool], PerSample]


class Encoded(NamedTuple):
    """An encoded batch of B samples.

    Attributes:
        leaves: The flattened embeddings, detached; tensors have leading axis B.
        spec: Tree specification of the embeddings.
        tracked: For each leaf, whether it depends on the parameters.
        gram: K cotangents, leaves (B, ...) -> Gram blocks (groups, K, K) of per-sample gradients, and a function from
            weights (B, K) to the weighted sum of these gradients in the tree of the parameters.
        fused: K cotangents, a function from Gram blocks to weights -> Gram blocks and weighted sum, in one go.
        gram_of_rows: Function of a range of groups that gives K cotangents with leaves (n, B, ...), one row a group
            -> Gram blocks (groups, K, K), every row pulled through the encoders of the whole batch.
        pull: One cotangent, leaves (B, ...) -> gradient in the tree of the parameters.
    """

    leaves: list[Any]
    spec: Any
    tracked: list[bool]
    gram: Callable[[Sequence[Cotangent]], tuple[Tensor, Callable[[Tensor], PyTree]]]
    fused: Callable[[Sequence[Cotangent], Weigh], tuple[Tensor, PyTree]]
    gram_of_rows: Callable[[Callable[[range], Sequence[Cotangent]]], Tensor]
    pull: Callable[[Cotangent], PyTree]


def mix(cotangents: Sequence[Cotangent], weights: Tensor) -> Cotangent:
    """``sum_k W_bk c_bk``: one cotangent out of K; weights (B, K)."""
    mixed: list[Tensor | None] = []
    for leaf in zip(*cotangents, strict=True):
        total: Tensor | None = None
        for c, w in zip(leaf, weights.unbind(1), strict=True):
            if c is not None:
                term = c * w.to(c.dtype).view(-1, *[1] * (c.ndim - 1))
                total = term if total is None else total + term
        mixed.append(total)
    return mixed
