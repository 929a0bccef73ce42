"""Harmony: per-sample gradients of several losses, realigned and filtered where they conflict."""

from harmony import curriculum, losses, realign, schedule, stats
from harmony.cosines import agreement, cosine, defined
from harmony.gram import Aux, gram_vjp
from harmony.step import Info, backward, harmonized_grad
from harmony.transform import Transform, chain, samplewise

__version__ = "0.1.0"

__all__ = [
    "Aux",
    "Info",
    "Transform",
    "agreement",
    "backward",
    "chain",
    "cosine",
    "curriculum",
    "defined",
    "gram_vjp",
    "harmonized_grad",
    "losses",
    "realign",
    "samplewise",
    "schedule",
    "stats",
]
