"""How each op carries the samples from its outputs back to its inputs, one file a family of ops.

A rule sees where the samples lie in an output of an op and tells where they lie in its inputs: at some place, or shared
by all of them, as the weight of a linear map is. Rules rest on what an op means, not on the values at hand, so that
they hold for every batch. What has no rule here is found by experiment, on every batch.
"""

from collections.abc import Callable

from harmony.engines.tape.axis_rules import dims, elementwise, indices, layers, parts, views
from harmony.engines.tape.axis_rules.op import Claims, Mark, Op, State

__all__ = ["BY_DATA", "MOVES_BY_SHAPE", "RULES", "Claims", "Mark", "Op", "Rule", "State"]

Rule = Callable[[Op], Claims]

RULES: dict[str, Rule] = {
    **elementwise.RULES,
    **views.RULES,
    **parts.RULES,
    **dims.RULES,
    **layers.RULES,
    **indices.RULES,
}
"""Name of a backward node, without ``Backward`` and its number -> rule."""

BY_DATA = indices.BY_DATA
"""Ops whose rule reads index tensors: what it tells holds for one batch."""

MOVES_BY_SHAPE = {"ConstantPadNd", "Diagonal", "Repeat", "ReshapeAlias", "Unfold", "UnsafeView", "View"}
"""Ops that move entries by shapes and options that the graph shows: an experiment with them holds for every batch."""
