"""What an engine returns: embeddings, and what can be pulled back from them to the parameters."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

PyTree = Any
Cotangent = Sequence[Tensor | None]
"""One tensor per tracked embedding leaf, shaped like it; None where the loss does not reach the leaf."""

Reach = list[list[bool]]
"""For each tracked embedding leaf, which parameters its graph reaches: structure alone, no values."""

Sum = Callable[[Sequence[Tensor]], list[Tensor]]

Weigh = Callable[[Tensor, range], Tensor]
"""Gram blocks (g, L, K, K) of a range of groups -> weights (g, L, K)."""


class PerSample(Protocol):
    """Gradients of n samples under K losses, computed when and as far as they are needed."""

    def gram(self, group_size: int) -> Tensor:
        """Gram blocks (groups, L, K, K)."""

    def sums(self, group_size: int) -> list[list[list[Tensor]]]:
        """Gradients summed over each group: for each label, K lists of tensors (groups, ...)."""

    def toward(self, direction: Sequence[Tensor], group_size: int) -> Tensor:
        """Inner products (groups, L, K) with one gradient, given for every parameter."""

    def combine(self, weights: Tensor) -> list[Tensor]:
        """``sum_bk W_bk g_b^k`` for weights (n, L, K), by the label of each parameter: one gradient per leaf."""

    def fused(self, group_size: int, weigh: Weigh) -> tuple[Tensor, list[Tensor]]:
        """Gram blocks (groups, L, K, K), and the combination by the weights that ``weigh`` makes of them."""


class Trace(NamedTuple):
    """A run of the encoder on n samples.

    Attributes:
        leaves: The flattened embeddings, detached; tensors have leading axis n.
        spec: Tree specification of the embeddings.
        tracked: For each leaf, whether it depends on the parameters.
        pull: One cotangent -> its gradient, one tensor per parameter leaf.
        per_sample: K cotangents, and whether ``fused`` will be called -> gradients of single samples.
        reaches: Asked once, before the others: which parameters each tracked leaf reaches.
    """

    leaves: list[Any]
    spec: Any
    tracked: list[bool]
    pull: Callable[[Cotangent], list[Tensor]]
    per_sample: Callable[[Sequence[Cotangent], bool], PerSample]
    reaches: Callable[[], Reach]


class Encoded(NamedTuple):
    """An encoded batch of B samples. L labels of parameters have a Gram each; usually there is one.

    Attributes:
        leaves: The flattened embeddings, detached; tensors have leading axis B.
        spec: Tree specification of the embeddings.
        tracked: For each leaf, whether it depends on the parameters.
        gram: K cotangents, leaves (B, ...) -> Gram blocks (groups, L, K, K) of per-sample gradients, and a function
            from weights (B, L, K) to the weighted sum of these gradients in the tree of the parameters.
        fused: K cotangents, a function from Gram blocks to weights -> Gram blocks and weighted sum, in one go.
        gram_of_rows: Function of a range of groups that gives K cotangents with leaves (n, B, ...), one row a group;
            the number of groups; what adds gradients up over processes -> Gram blocks (groups, L, K, K), every row
            pulled through the encoders of the whole batch.
        toward: K cotangents, a gradient for every parameter leaf -> inner products (groups, L, K) with it.
        pull: One cotangent, leaves (B, ...) -> gradient in the tree of the parameters.
        reaches: Asked once, before the others: which parameters each tracked leaf reaches.
    """

    leaves: list[Any]
    spec: Any
    tracked: list[bool]
    gram: Callable[[Sequence[Cotangent]], tuple[Tensor, Callable[[Tensor], PyTree]]]
    fused: Callable[[Sequence[Cotangent], Weigh], tuple[Tensor, PyTree]]
    gram_of_rows: Callable[[Callable[[range], Sequence[Cotangent]], int, Sum], Tensor]
    toward: Callable[[Sequence[Cotangent], Sequence[Tensor]], Tensor]
    pull: Callable[[Cotangent], PyTree]
    reaches: Callable[[], Reach]


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


def by_label(grads: Sequence[Sequence[Tensor]], label: Sequence[int]) -> list[list[list[Tensor]]]:
    """Sort K lists of gradients by the label of each parameter: for each label, K lists."""
    return [
        [[g for g, own in zip(leaves, label, strict=True) if own == number] for leaves in grads]
        for number in range(max(label) + 1)
    ]


def pull_mixed(
    pull: Callable[[Cotangent], list[Tensor]], cotangents: Sequence[Cotangent], weights: Tensor, label: Sequence[int]
) -> list[Tensor]:
    """Pull the weighted sum of K cotangents back, with the weights (B, L, K) of each parameter's own label."""
    return pull_labelled(lambda w: pull(mix(cotangents, w)), weights, label)


def pull_labelled(pull: Callable[[Tensor], list[Tensor]], weights: Tensor, label: Sequence[int]) -> list[Tensor]:
    """One backward pass for each label; a parameter without one gets the mean of the weights (B, L, K)."""
    if weights.shape[1] == 1:
        return pull(weights[:, 0])
    grads = {number: pull(weights[:, number] if number >= 0 else weights.mean(1)) for number in sorted(set(label))}
    return [grads[number][p] for p, number in enumerate(label)]
