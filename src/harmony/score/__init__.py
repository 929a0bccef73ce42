"""Scores: one number per sample, larger for cleaner samples. Curricula decide by them.

A score is a function ``score(gram, **extras)`` of Gram blocks (B, K, K), and of what the step knows beside them, that
gives values (B,), NaN where a sample has no score: curricula never drop such a sample. Here these are the samples with
fewer than two nonzero gradients. A score with a memory is a pair of ``init`` and ``update``, like a transform.
"""

from harmony.score.base import AnyScore, Score, as_score
from harmony.score.blocks import agreement, gradient_norm, norm_ratio, pair_cosine
from harmony.score.combine import combined, ema, least, negative, ranked, standardized
from harmony.score.observed import batch_agreement, similarity, small_loss

__all__ = [
    "AnyScore",
    "Score",
    "agreement",
    "as_score",
    "batch_agreement",
    "combined",
    "ema",
    "gradient_norm",
    "least",
    "negative",
    "norm_ratio",
    "pair_cosine",
    "ranked",
    "similarity",
    "small_loss",
    "standardized",
]
