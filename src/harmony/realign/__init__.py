"""Realignment: what to make of a sample's gradients where they conflict.

The rule for members of a chain: what needs nothing but Gram blocks is a function, used bare, with options fixed by
``functools.partial``; what has a step count or a memory (``gradvac``, ``pcgrad_random``, ``random``) is called and
gives a transform.

Weights of one leave the ordinary gradient of the summed losses as it is. A loss whose gradient is zero takes no part:
the method sees the others, and its weight is 1 (or its preference). A sample with a single gradient gets what the
method makes of one gradient: 1, unless the method rescales gradients by their norms, or does not look at them
(``mean``, ``random``).

All arithmetic is done on cosines and relative norms in float64: weights are finite for any finite block, in any dtype.
"""

from harmony.realign.balance import fairgrad, imtl_g, nash_mtl
from harmony.realign.constant import mean, normalized, random, summed
from harmony.realign.descent import cagrad, mgda
from harmony.realign.dual_cone import dualproj, upgrad
from harmony.realign.projection import gradvac, pcgrad, pcgrad_random
from harmony.realign.spectral import aligned_mtl, config

__all__ = [
    "aligned_mtl",
    "cagrad",
    "config",
    "dualproj",
    "fairgrad",
    "gradvac",
    "imtl_g",
    "mean",
    "mgda",
    "nash_mtl",
    "normalized",
    "pcgrad",
    "pcgrad_random",
    "random",
    "summed",
    "upgrad",
]
