"""How each op carries the samples from an output back to an input, one file a family of ops.

A rule sees where the samples lie in an output of an op and tells where they lie in an input: at some place, or that it
is common to all samples, as the weight of a linear map is. Rules rest on what an op means, not on the values at hand,
so that they hold for every batch. What has no rule here is found by experiment.
"""

from collections.abc import Callable

from harmony.engines.tape.axis_rules import dims, indices, layers, views
from harmony.engines.tape.layout import State
from harmony.engines.tape.site import Site

__all__ = ["BY_DATA", "MOVES_BY_SHAPE", "RULES"]

RULES: dict[str, Callable[[Site], State | None]] = {**dims.RULES, **views.RULES, **layers.RULES, **indices.RULES}
"""Name of a backward node, without ``Backward`` and its number -> rule."""

BY_DATA = indices.RULES.keys()
"""Ops whose rule reads index tensors: what it tells holds for one batch."""

MOVES_BY_SHAPE = {"ConstantPadNd", "Diagonal", "Repeat", "ReshapeAlias", "Unfold", "UnsafeView", "View"}
"""Ops that move entries by shapes and options that the graph shows: an experiment with them holds for every batch."""
