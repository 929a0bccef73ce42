"""Harmony: per-sample gradients of several losses, realigned and filtered where they conflict."""

from harmony import curriculum, distributed, losses, realign, schedule, score, stats
from harmony.checks import Check, check
from harmony.cosines import agreement, cosine, defined
from harmony.engines.options import Engine
from harmony.engines.scratch import release_memory
from harmony.gram import GramVJP, gram_vjp
from harmony.members import samplewise
from harmony.plans import Plan, plan
from harmony.step import Info, backward, harmonized_grad, measure
from harmony.transform import Transform, chain, layerwise

__version__ = "0.1.0"

__all__ = [
    "Check",
    "Engine",
    "GramVJP",
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
    "measure",
    "plan",
    "realign",
    "release_memory",
    "samplewise",
    "schedule",
    "score",
    "stats",
]
