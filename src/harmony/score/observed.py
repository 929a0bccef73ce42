"""Scores of what a step sees beside the Gram: the batch's gradient, the loss terms, the embeddings."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from harmony.extras import require_extra
from harmony.score.base import where_defined
from harmony.transform import samplewise


def batch_agreement(gram: Tensor, *, batch_products: Tensor | None = None, **extras: Any) -> Tensor:
    """Cosine between a sample's gradient and that of the rest of the batch, both of the summed losses.

    Args:
        gram: Gram blocks (B, K, K).
        batch_products: Inner products (B, K) with the gradient of the whole batch: what a step provides that was told
            ``batch_products=True``. The sample's own share in it is taken out here.
        **extras: Not used.

    Returns:
        Cosines (B,) in [-1, 1]; 0 where the rest of the batch has no gradient.

    Raises:
        ValueError: No ``batch_products``, or one of another shape.

    Examples:
        >>> import torch, harmony
        >>> gram = torch.ones(3, 2, 2) / 4  # three unit gradients, in two halves each: e_1, e_1, -e_1
        >>> harmony.score.batch_agreement(gram, batch_products=torch.tensor([[0.5, 0.5], [0.5, 0.5], [-0.5, -0.5]]))
        tensor([ 0.,  0., -1.])
    """
    batch_products = require_extra(
        "batch_agreement", "batch_products", batch_products, gram.shape[:2], "batch_products=True"
    )
    own = gram.sum((1, 2))
    whole = batch_products.sum()  # <g, g>, the batch's gradient with itself
    product = batch_products.sum(1) - own
    rest = (whole - 2 * batch_products.sum(1) + own).clamp(min=0)
    rest = torch.where(rest > torch.finfo(gram.dtype).eps * whole.abs(), rest, 0)  # what is left of rounding
    norm = own.clamp(min=0).sqrt() * rest.sqrt()
    return where_defined(torch.where(norm > 0, product / torch.where(norm > 0, norm, 1), 0).clamp(-1, 1), gram)


@samplewise
def small_loss(
    gram: Tensor, *, terms: Tensor | None = None, losses: Sequence[int] | None = None, **extras: Any
) -> Tensor:
    """Minus a sample's own loss: the small-loss selection of learning with noisy labels, and the baseline to beat.

    Args:
        gram: Gram blocks (B, K, K).
        terms: Loss terms (B, K); a step provides them.
        losses: Numbers of the losses to add up; default all.
        **extras: Not used.

    Returns:
        ``-sum_k l_bk`` (B,).

    Raises:
        ValueError: No ``terms``, or terms of another shape.

    Examples:
        >>> import torch, harmony
        >>> harmony.score.small_loss(torch.eye(2)[None], terms=torch.tensor([[1.0, 2.0]]))
        tensor([-3.])

    References:
        Han et al., Co-teaching, 2018 (arXiv:1804.06872).
    """
    terms = require_extra("small_loss", "terms", terms, gram.shape[:2], "harmonized_grad or backward")
    chosen = terms if losses is None else terms[:, list(losses)]
    return where_defined(-chosen.sum(1), gram, pair=False)


@samplewise
def similarity(gram: Tensor, *, similarity: Tensor | None = None, **extras: Any) -> Tensor:
    """What the extras call similarity: of video and text, say.

    Args:
        gram: Gram blocks (B, K, K).
        similarity: Values (B,); a step provides them that was given ``extras=lambda f: {"similarity": ...}``, a
            function of the embeddings.
        **extras: Not used.

    Returns:
        The same values (B,), where the sample has an agreement.

    Raises:
        ValueError: No ``similarity``, or one of another shape.

    Examples:
        >>> import torch, harmony
        >>> harmony.score.similarity(torch.eye(2)[None], similarity=torch.tensor([0.3]))
        tensor([0.3000])
    """
    extra = 'extras=lambda embeddings: {"similarity": ...}'
    return where_defined(require_extra("similarity", "similarity", similarity, gram.shape[:1], extra), gram, pair=False)
