"""Weights that come with the data: how far each pair is to be trusted, known before training."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from harmony.arguments import require_extra
from harmony.members import factory
from harmony.transform import Member, State, Transform, chain, product, whole_gram

PRODUCTS = ("batch_products", "reference_products")
"""Extras that are inner products with the gradients of each loss."""


@factory("transform")
def weighted(*members: Member) -> Transform:
    """Weigh each sample's gradients by weights from the data, and apply members to the weighted gradients.

    The members see the Gram blocks of ``w_b^k g_b^k``, unlike members of a [chain][harmony.chain], which see those of
    ``g_b^k``. So a pair of weight 0 takes no part: its gradient counts as zero, no other is projected away from it, and
    its sample has no agreement by which a curriculum could drop it. The pair is still a negative for others in a
    contrastive loss. Inner products of ``products_with`` are weighted, too; loss terms and other extras stay as they
    are, and so does the gradient of the batch.

    Args:
        *members: As in ``chain``; without members, the weights are those of the data.

    Returns:
        A transform that needs ``weights`` (B, K), finite and at least 0, from a step with
        ``extras=lambda embeddings: {"weights": ...}``; samplewise or layerwise if the members are. Other weights are a
        ValueError on the CPU. On other devices they count as NaN, without waiting for the device, and the gradient is
        then NaN.

    Examples:
        >>> trusted = harmony.curriculum.weighted(harmony.curriculum.threshold(0.0), harmony.realign.pcgrad)
        >>> gram = torch.tensor([[1.0, -0.5], [-0.5, 1.0]]).expand(3, 2, 2)  # three samples with a conflict
        >>> weights = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.5, 0.0]])  # two of them without trust in one pair
        >>> trusted.update(gram, trusted.init(), weights=weights)[0]
        tensor([[0.0000, 0.0000],
                [1.0000, 0.0000],
                [0.5000, 0.0000]])
    """
    inner = chain(*members)

    @torch.no_grad()
    def update(gram: Any, state: State, *, weights: Tensor | None = None, **extras: Any) -> tuple[Any, State]:
        total = whole_gram(gram)
        source = 'extras=lambda embeddings: {"weights": ...}'
        given = _checked(require_extra("weighted", "weights", weights, total.shape[:2], source)).to(total.dtype)
        products = {name: product(given, x) for name, x in extras.items() if name in PRODUCTS}
        factors, state = inner.update(_weigh(gram, given), state, weights=weights, **extras | products)
        return product(given, factors), state

    return Transform(inner.init, update, inner.samplewise, inner.layerwise)


def _weigh(gram: Any, weights: Tensor) -> Any:
    """Gram blocks of the gradients times weights (B, K); for each label where there are labels."""
    if isinstance(gram, Mapping):
        return {label: _weigh(blocks, weights) for label, blocks in gram.items()}
    return gram * weights[:, :, None] * weights[:, None]


def _checked(weights: Tensor) -> Tensor:
    """Weights that are finite and not negative, others as NaN; on the CPU an error, which costs no waiting there."""
    valid = (weights >= 0) & weights.isfinite()
    if weights.device.type == "cpu" and not torch.compiler.is_compiling() and not valid.all():
        b, k = (~valid).nonzero()[0].tolist()
        raise ValueError(
            f"weights must be finite and at least 0; got {weights[b, k].item():g} for sample {b}, loss {k}. "
            "Clean the weights of the data."
        )
    return torch.where(valid, weights, torch.nan)
