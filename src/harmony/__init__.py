"""Harmony: per-sample gradients of several losses, realigned and filtered where they conflict."""

from harmony import curriculum, distributed, losses, realign, schedule, score, stats
from harmony.cosines import agreement, cosine, defined
from harmony.diagnostics import Check, Plan, check, plan
from harmony.gram import Aux, gram_vjp
from harmony.members import samplewise
from harmony.step import Info, backward, harmonized_grad
from harmony.transform import Transform, chain, layerwise

__version__ = "0.1.0"

__all__ = [
    "Aux",
    "Check",
    "Info",
    "Plan",
    "Transform",
    "agreement",
    "backward",
    "chain",
    "check",
    "cosine",
    "curriculum",
    "defined",
    "distributed",
    "gram_vjp",
    "harmonized_grad",
    "layerwise",
    "losses",
    "plan",
    "realign",
    "samplewise",
    "schedule",
    "score",
    "stats",
]
