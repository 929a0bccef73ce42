"""The ops whose per-sample gradients are known in closed form, one file a family. What is not here is ``Isolated``."""

from harmony.engines.tape.rules import convolution, matmul, normalization, pointwise, table
from harmony.engines.tape.use import Matrix, Reduced, Site

RULES = {**matmul.RULES, **convolution.RULES, **normalization.RULES, **pointwise.RULES, **table.RULES}
"""Name of a backward node -> function of a site that gives a use, or None where it does not fit."""


def closed_form(site: Site) -> Matrix | Reduced | None:
    """The use at a site by the rule of its op, if there is one."""
    rule = RULES.get(site.node.name())
    return None if rule is None else rule(site)
