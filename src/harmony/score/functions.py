"""Scores that are functions of Gram blocks and extras, used bare."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from harmony.arguments import require_extra
from harmony.cosines import cosine
from harmony.engines.options import require_choice
from harmony.members import samplewise
from harmony.numerics.unit import unit_blocks
from harmony.score.base import where_defined

Criterion = Literal["learnability", "hard_learner", "easy_reference"]


@samplewise
def pair_cosine(gram: Tensor, k: int = 0, l: int = 1) -> Tensor:
    """The cosine of one pair of gradients.

    Args:
        gram: Gram blocks (B, K, K).
        k: One loss.
        l: The other.

    Returns:
        Cosines (B,) in [-1, 1]; NaN where one of the two gradients is zero.

    Examples:
        >>> from functools import partial
        >>> last_two = partial(harmony.score.pair_cosine, k=1, l=2)
        >>> last_two(torch.tensor([[[1.0, 0.0, 0.0], [0.0, 4.0, 3.0], [0.0, 3.0, 9.0]]]))
        tensor([0.5000])
    """
    squared = torch.stack([gram[:, k, k], gram[:, l, l]], 1)
    both = ((squared > 0) & squared.isfinite()).all(1)
    return torch.where(both, cosine(gram)[:, k, l], torch.nan)


@samplewise
def norm_ratio(gram: Tensor) -> Tensor:
    """How equal the lengths of a sample's gradients are.

    Args:
        gram: Gram blocks (B, K, K).

    Returns:
        The least norm over the largest (B,), of the gradients that are not zero; in (0, 1].

    Examples:
        >>> harmony.score.norm_ratio(torch.tensor([[[4.0, 0.0], [0.0, 16.0]]]))
        tensor([0.5000])
    """
    blocks = unit_blocks(gram)
    return where_defined(torch.where(blocks.active, blocks.norm, 1).amin(-1).to(gram.dtype), gram)


@samplewise
def gradient_norm(gram: Tensor) -> Tensor:
    """Length of the gradient of a sample's summed losses. ``negative(gradient_norm)`` prefers the small ones.

    Args:
        gram: Gram blocks (B, K, K).

    Returns:
        ``|sum_k g_b^k|`` (B,).

    Examples:
        >>> harmony.score.gradient_norm(torch.tensor([[[9.0, 0.0], [0.0, 16.0]]]))
        tensor([5.])
    """
    return where_defined(gram.sum((1, 2)).clamp(min=0).sqrt(), gram, pair=False)


@samplewise
def small_loss(gram: Tensor, *, terms: Tensor | None = None, losses: Sequence[int] | None = None) -> Tensor:
    """Minus a sample's own loss: the small-loss selection of learning with noisy labels, and the baseline to beat.

    Args:
        gram: Gram blocks (B, K, K).
        terms: Loss terms (B, K); every step gives them.
        losses: Indices of the losses to add up; default all.

    Returns:
        ``-sum_k l_bk`` (B,). Han et al., Co-teaching, 2018 (arXiv:1804.06872).

    Examples:
        >>> harmony.score.small_loss(torch.eye(2)[None], terms=torch.tensor([[1.0, 2.0]]))
        tensor([-3.])
    """
    terms = require_extra("small_loss", "terms", terms, gram.shape[:2], "harmonized_grad or backward")
    return where_defined(-_summed(terms, losses), gram, pair=False)


@samplewise
def learnability(
    gram: Tensor,
    *,
    terms: Tensor | None = None,
    reference_terms: Tensor | None = None,
    losses: Sequence[int] | None = None,
    criterion: Criterion = "learnability",
) -> Tensor:
    """A sample's loss less that of a reference model: high for what can be learnt and is not yet.

    A wrong pair is hard for both models, a pair that has been learnt is easy for both.

    Args:
        gram: Gram blocks (B, K, K).
        terms: Loss terms (B, K) of the model that learns; every step gives them.
        reference_terms: The same of the reference, (B, K), on the same batch, since the others are its negatives; from
            a step with ``extras=lambda embeddings: {"reference_terms": ...}``.
        losses: Indices of the losses to add up; default all.
        criterion: ``"learnability"``; or one of its two parts, ``"hard_learner"``, the learner's loss, and
            ``"easy_reference"``, minus that of the reference.

    Returns:
        ``sum_k l_bk - sum_k r_bk`` (B,). Evans et al., JEST, 2024 (arXiv:2406.17711), which chooses the samples of a
        batch jointly, where this looks at each in the batch as it is; for single samples Mindermann et al., RHO-LOSS,
        2022 (arXiv:2206.07137).

    Examples:
        >>> gram, terms = torch.eye(2).expand(3, 2, 2), torch.tensor([[2.0, 2.0], [0.1, 0.1], [2.0, 2.0]])
        >>> reference = torch.tensor([[0.5, 0.5], [0.1, 0.1], [2.0, 2.0]])  # can be learnt; has been; is wrong
        >>> harmony.score.learnability(gram, terms=terms, reference_terms=reference)
        tensor([3., 0., 0.])
    """
    require_choice("criterion", criterion, get_args(Criterion))
    total = gram.new_zeros(len(gram))
    if criterion != "easy_reference":
        source = "harmonized_grad or backward"
        total = total + _summed(require_extra("learnability", "terms", terms, gram.shape[:2], source), losses)
    if criterion != "hard_learner":
        source = 'extras=lambda embeddings: {"reference_terms": ...}'
        given = require_extra("learnability", "reference_terms", reference_terms, gram.shape[:2], source)
        total = total - _summed(given, losses)
    return where_defined(total, gram, pair=False)


def _summed(terms: Tensor, losses: Sequence[int] | None) -> Tensor:
    """The sum (B,) of some loss terms (B, K)."""
    return (terms if losses is None else terms[:, list(losses)]).sum(1)


@samplewise
def similarity(gram: Tensor, *, similarity: Tensor | None = None) -> Tensor:
    """The extra called similarity: of video and text, say.

    Args:
        gram: Gram blocks (B, K, K).
        similarity: Values (B,), from a step with ``extras=lambda embeddings: {"similarity": ...}``.

    Returns:
        The same values (B,), where the sample has an agreement.

    Examples:
        >>> harmony.score.similarity(torch.eye(2)[None], similarity=torch.tensor([0.3]))
        tensor([0.3000])
    """
    source = 'extras=lambda embeddings: {"similarity": ...}'
    values = require_extra("similarity", "similarity", similarity, gram.shape[:1], source)
    return where_defined(values, gram, pair=False)


@samplewise
def triangle_area(gram: Tensor, *, triplet: Tensor | None = None) -> Tensor:
    """Minus the area of the triangle between the embeddings of three modalities, on the unit sphere.

    Args:
        gram: Gram blocks (B, K, K).
        triplet: Embeddings (B, 3, D), L2-normalised here, from a step with
            ``extras=lambda embeddings: {"triplet": ...}``.

    Returns:
        ``-sqrt(|u|^2 |v|^2 - <u, v>^2) / 2`` (B,), u and v being two sides; 0 for equal embeddings. Cicchetti et al.,
        TRIANGLE, 2025 (arXiv:2509.24734).

    Examples:
        >>> harmony.score.triangle_area(torch.eye(2)[None], triplet=torch.eye(3)[None])
        tensor([-0.8660])
    """
    source = 'extras=lambda embeddings: {"triplet": ...}'
    triplet = require_extra("triangle_area", "triplet", triplet, (len(gram), 3, "D"), source)
    x1, x2, x3 = F.normalize(triplet.to(torch.promote_types(triplet.dtype, torch.float32)), dim=-1).unbind(1)
    u, v = x2 - x1, x3 - x1
    # The height of v over u: the formula itself would lose half of the digits where the area is small.
    squared = u.square().sum(-1, keepdim=True)
    for _ in range(2):  # the second time removes the rounding error of the first
        v = v - (u * v).sum(-1, keepdim=True) / torch.where(squared > 0, squared, 1) * u
    return where_defined(-u.norm(dim=-1) * v.norm(dim=-1) / 2, gram, pair=False)
