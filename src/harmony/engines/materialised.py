"""Per-sample gradients held as tensors: what the reference engine and the loop give."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from harmony.engines.encoded import Cotangent, Weigh, mix
from harmony.engines.precision import inner_products


class Materialised:
    """Gradients of n samples under K losses: K lists of leaves (n, *shape), one for each parameter in the Gram."""

    def __init__(
        self,
        grads: list[list[Tensor]],
        cotangents: Sequence[Cotangent],
        pull: Callable[[Cotangent], list[Tensor]],
    ) -> None:
        self.grads = grads
        self.cotangents = cotangents
        self.pull = pull

    def gram(self, group_size: int) -> Tensor:
        """Gram blocks (groups, K, K)."""
        return inner_products(self.sums(group_size))

    def sums(self, group_size: int) -> list[list[Tensor]]:
        """Gradients summed over each group: K lists of leaves (groups, *shape)."""
        return [[sum_groups(leaf, group_size) for leaf in leaves] for leaves in self.grads]

    def combine(self, weights: Tensor) -> list[Tensor]:
        """The update for weights (n, K), over all parameters: one more backward pass."""
        return self.pull(mix(self.cotangents, weights))

    def fused(self, group_size: int, weigh: Weigh) -> tuple[Tensor, list[Tensor]]:
        """Gram blocks and update."""
        gram = self.gram(group_size)
        weights = weigh(gram, range(len(gram))).repeat_interleave(group_size, 0)
        n = len(self.grads[0][0])
        return gram, self.combine(weights[:n])


def sum_groups(grads: Tensor, group_size: int) -> Tensor:
    """Sum the gradients (n, *shape) of consecutive samples: (groups, *shape)."""
    if group_size == 1:
        return grads
    return torch.stack([part.sum(0) for part in torch.split(grads, group_size)])
