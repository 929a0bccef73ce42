"""Per-sample gradients held as tensors: what the reference engine and the loop give."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from harmony.engines.encoded import Cotangent, Weigh, by_label, pull_mixed
from harmony.engines.precision import accumulating, full_precision, inner_products


class Materialised:
    """Gradients of n samples under K losses: K lists of leaves (n, *shape), one for each parameter in a Gram.

    A group that was differentiated as one has leaves (1, *shape).
    """

    def __init__(
        self,
        grads: list[list[Tensor]],
        label: list[int],
        cotangents: Sequence[Cotangent],
        pull: Callable[[Cotangent], list[Tensor]],
        size: int,
    ) -> None:
        self.grads = grads
        self.label = label
        self.cotangents = cotangents
        self.pull = pull
        self.size = size

    def gram(self, group_size: int) -> Tensor:
        """Gram blocks (groups, L, K, K)."""
        return torch.stack([inner_products(sums) for sums in self.sums(group_size)], 1)

    def sums(self, group_size: int) -> list[list[list[Tensor]]]:
        """Gradients summed over each group: for each label, K lists of leaves (groups, *shape)."""
        sums = [[sum_groups(leaf, group_size) for leaf in leaves] for leaves in self.grads]
        return by_label(sums, [number for number in self.label if number >= 0])

    def toward(self, direction: Sequence[Tensor], group_size: int) -> Tensor:
        """Inner products (groups, L, K) with one gradient, given for every parameter."""
        chosen = by_label([list(direction)], self.label)
        with full_precision(direction[0].device.type):
            rows = [
                torch.stack([_inner(leaves, along) for leaves in of_label], 1)
                for of_label, [along] in zip(self.sums(group_size), chosen, strict=True)
            ]
        return torch.stack(rows, 1)

    def combine(self, weights: Tensor) -> list[Tensor]:
        """The update for weights (n, L, K), over all parameters: backward passes."""
        return pull_mixed(self.pull, self.cotangents, weights, self.label)

    def fused(self, group_size: int, weigh: Weigh) -> tuple[Tensor, list[Tensor]]:
        """Gram blocks and update."""
        gram = self.gram(group_size)
        weights = weigh(gram, range(len(gram))).repeat_interleave(group_size, 0)
        return gram, self.combine(weights[: self.size])


def _inner(leaves: Sequence[Tensor], direction: Sequence[Tensor]) -> Tensor:
    """Inner products (n,) of gradients (n, *shape) with one."""
    return torch.stack(
        [accumulating(g).flatten(1) @ accumulating(d).flatten() for g, d in zip(leaves, direction, strict=True)]
    ).sum(0)


def sum_groups(grads: Tensor, group_size: int) -> Tensor:
    """Sum the gradients (n, *shape) of consecutive samples: (groups, *shape)."""
    if group_size == 1:
        return grads
    return torch.stack([part.sum(0) for part in torch.split(grads, group_size)])
