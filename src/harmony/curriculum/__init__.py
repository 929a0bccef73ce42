"""Curricula: which samples to learn from. Each gives a factor in [0, 1] per sample, the same for all its losses.

``cross_check`` alone judges the pairs of each loss apart. They decide by a score, by default the agreement of a sample's
gradients (see ``harmony.score``). A sample without a score (one modality is missing) has the factor 1: it is never
dropped, and counts in no quantile.
"""

from harmony.curriculum.cross_check import cross_check
from harmony.curriculum.hysteresis import hysteresis
from harmony.curriculum.ranking import quantile, running_quantile, top_k
from harmony.curriculum.renormalize import renormalized
from harmony.curriculum.threshold import agreement_weight, soft_threshold, threshold

__all__ = [
    "agreement_weight",
    "cross_check",
    "hysteresis",
    "quantile",
    "renormalized",
    "running_quantile",
    "soft_threshold",
    "threshold",
    "top_k",
]
