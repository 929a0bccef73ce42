"""Scores that compare a sample's gradient with one other: that of the batch, or a given one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from harmony.arguments import require_extra
from harmony.members import samplewise
from harmony.score.base import where_defined


@samplewise
def batch_agreement(
    gram: Tensor, *, batch_products: Tensor | None = None, batch_square: Tensor | None = None
) -> Tensor:
    """Cosine between a sample's gradient and that of the rest of the batch, both of the summed losses.

    Args:
        gram: Gram blocks (B, K, K).
        batch_products: Inner products (B, K) with the gradient of the whole batch, from a step with
            ``products_with="batch"``. The sample's own share in it is taken out here.
        batch_square: The squared norm of that gradient, without axes, from the same step.

    Returns:
        Cosines (B,) in [-1, 1]; 0 where the rest of the batch has no gradient.

    Examples:
        >>> gram = torch.ones(3, 2, 2) / 4  # three unit gradients, in two halves each: e_1, e_1, -e_1
        >>> products = torch.tensor([[0.5, 0.5], [0.5, 0.5], [-0.5, -0.5]])
        >>> harmony.score.batch_agreement(gram, batch_products=products, batch_square=torch.tensor(1.0))
        tensor([ 0.,  0., -1.])
    """
    source = 'products_with="batch"'
    products = require_extra("batch_agreement", "batch_products", batch_products, gram.shape[:2], source).sum(1)
    batch = require_extra("batch_agreement", "batch_square", batch_square, (), source)
    squared = gram.sum((1, 2))
    rest = (batch - 2 * products + squared).clamp(min=0)
    rest = torch.where(rest > torch.finfo(gram.dtype).eps * batch, rest, 0)  # less is a rounding error
    norm = squared.clamp(min=0).sqrt() * rest.sqrt()
    cosines = torch.where(norm > 0, (products - squared) / torch.where(norm > 0, norm, 1), 0)
    return where_defined(cosines.clamp(-1, 1), gram)


@samplewise
def reference_agreement(
    gram: Tensor,
    *,
    reference_products: Tensor | None = None,
    reference_square: Tensor | None = None,
    losses: Sequence[int] | None = None,
) -> Tensor:
    """Cosine between a sample's gradient and a given one, as of trusted data: whether it leads where these lead.

    Args:
        gram: Gram blocks (B, K, K).
        reference_products: Inner products (B, K) with the given gradient, from a step with
            ``products_with={parameter: tensor}``.
        reference_square: The squared norm of the given gradient, without axes, from the same step.
        losses: Indices of the losses whose gradients are added up for the sample; default all.

    Returns:
        Cosines (B,) in [-1, 1]; NaN where one of the two gradients is zero. The sign is that by which Ren et al.,
        Learning to reweight examples, 2018 (arXiv:1803.09050), weigh a sample.

    Examples:
        >>> gram = torch.tensor([[4.0, 0.0], [0.0, 5.0]]).expand(1, 2, 2)  # gradients (2, 0) and (0, sqrt(5)), say
        >>> products = torch.tensor([[2.0, 0.0]])  # with (1, 0)
        >>> harmony.score.reference_agreement(gram, reference_products=products, reference_square=torch.tensor(1.0))
        tensor([0.6667])
    """
    rule, source = "reference_agreement", "products_with={parameter: tensor}"
    products = require_extra(rule, "reference_products", reference_products, gram.shape[:2], source)
    square = require_extra(rule, "reference_square", reference_square, (), source)
    chosen = range(gram.shape[1]) if losses is None else losses
    along = torch.stack([products[:, k] for k in chosen]).sum(0)
    squared = torch.stack([gram[:, k, l] for k in chosen for l in chosen]).sum(0)
    norm = squared.clamp(min=0).sqrt() * square.sqrt()
    return where_defined(torch.where(norm > 0, along / norm, torch.nan).clamp(-1, 1), gram, pair=False)
