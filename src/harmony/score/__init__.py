"""Scores: one number per sample, larger for cleaner samples. Curricula decide by them.

The rule for scores: what needs nothing but Gram blocks and extras is a function, used bare, with options fixed by
``functools.partial``; what has a memory or another score inside (``ema``, ``combined`` and the like) is called and
gives a score.

A score is a function ``score(gram)`` of Gram blocks (B, K, K), which names the extras of the step that it needs as
keywords. It gives values (B,), NaN where a sample has no score: curricula never drop such a sample. The scores here
are NaN for samples with fewer than two nonzero gradients.
"""

from harmony.cosines import agreement
from harmony.score.base import AnyScore, Score, as_score
from harmony.score.combine import combined, ema, least, negative, ranked, standardized
from harmony.score.directions import batch_agreement, reference_agreement
from harmony.score.functions import (
    gradient_norm,
    learnability,
    norm_ratio,
    pair_cosine,
    similarity,
    small_loss,
    triangle_area,
)
from harmony.score.neighbourhood import neighbours

__all__ = [
    "AnyScore",
    "Score",
    "agreement",
    "as_score",
    "batch_agreement",
    "combined",
    "ema",
    "gradient_norm",
    "learnability",
    "least",
    "negative",
    "neighbours",
    "norm_ratio",
    "pair_cosine",
    "ranked",
    "reference_agreement",
    "similarity",
    "small_loss",
    "standardized",
    "triangle_area",
]
