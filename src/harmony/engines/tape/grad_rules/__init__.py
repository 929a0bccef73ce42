"""The ops whose per-sample gradients have a closed form, by kind of use. What is not here is an ``OpaqueUse``."""

from collections.abc import Callable

from harmony.engines.tape.grad_rules import broadcasts, products
from harmony.engines.tape.param_use import BroadcastUse, MatmulUse
from harmony.engines.tape.site import Site

RULES: dict[str, Callable[[Site], MatmulUse | BroadcastUse | None]] = {**products.RULES, **broadcasts.RULES}
"""Name of a backward node -> function of a site that gives a use, or None where it does not fit."""


def closed_form(site: Site) -> MatmulUse | BroadcastUse | None:
    """The use at a site by the rule of its op, if there is one."""
    rule = RULES.get(site.op)
    use = None if rule is None else rule(site)
    if not isinstance(use, BroadcastUse):
        return use
    return (use.as_product() or use) if _is_broadcast(use) else None


def _is_broadcast(use: BroadcastUse) -> bool:
    """Whether all samples get the whole of the common tensor: none of them has rows of its own."""
    place = use.site.place
    axis = place.axis - (len(use.site.output) - len(use.target))
    if axis < 0 or use.target[axis] == 1:
        return True
    return use.total is not None and place.contiguous and place.rows % use.target[axis] == 0
