"""What an engine returns: embeddings, and what can be pulled back from them to the parameters."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

PyTree = Any
Cotangent = Sequence[Tensor | None]
"""One tensor per tracked embedding leaf, shaped like it; None where the loss does not reach the leaf."""


class Encoded(NamedTuple):
    """An encoded batch.

    Attributes:
        leaves: The flattened embeddings, detached; tensors have leading axis B.
        spec: Tree specification of the embeddings.
        tracked: For each leaf, whether it depends on the parameters.
        gram: K cotangents, leaves (B, ...) -> Gram blocks (groups, K, K) of per-sample gradients.
        gram_of_rows: Function of a range of groups that gives K cotangents with leaves (n, B, ...), one row a group
            -> Gram blocks (groups, K, K), every row pulled through the encoders of the whole batch.
        pull: One cotangent, leaves (B, ...) -> gradient in the tree of the parameters.
    """

    leaves: list[Any]
    spec: Any
    tracked: list[bool]
    gram: Callable[[Sequence[Cotangent]], Tensor]
    gram_of_rows: Callable[[Callable[[range], Sequence[Cotangent]]], Tensor]
    pull: Callable[[Cotangent], PyTree]
