"""Curricula: which samples to learn from. Each gives a factor in [0, 1] per sample, the same for all its losses.

The rule for curricula: all of them have a step count or a memory, so they are called and give a transform. Their score
is a function used bare, or made by a call; by default the agreement of a sample's gradients (see ``harmony.score``).
``cross_check`` alone judges the pair of each loss apart, and ``weighted`` judges nothing: its weights, one for each
loss, come with the data. A sample without a score (it lacks a modality) has the factor 1: it is never dropped, and no
quantile counts it.
"""

from harmony.curriculum.data_weights import weighted
from harmony.curriculum.ranking import quantile, running_quantile, top_k
from harmony.curriculum.renormalize import renormalized
from harmony.curriculum.third_pair import cross_check
from harmony.curriculum.thresholds import agreement_weight, hysteresis, soft_threshold, threshold

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
    "weighted",
]
