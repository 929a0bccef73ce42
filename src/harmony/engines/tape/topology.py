"""What holds for every batch with a graph of one signature, derived once and remembered."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from harmony.engines.tape.graph import Graph
from harmony.engines.tape.param_tensor import ParamTensor
from harmony.engines.tape.pieces import Cut, Piece
from harmony.engines.tape.plan import ParamBlock, Update
from harmony.engines.tape.sample_axis import SampleAxis


class StepPlan(NamedTuple):
    """Where the update comes from, what is computed for each parameter, and the pieces that the graph is walked in."""

    update: Update
    blocks: list[ParamBlock]
    pieces: list[Piece]


REMEMBERED = 256  # graphs; batches that are padded to their longest text have one for each length


@dataclass(eq=False)
class Topology:
    """Where the samples lie in a graph, the tensors made of parameters, its pieces, and the plans made for it."""

    places: SampleAxis
    tensors: list[ParamTensor]
    cut: Cut
    plans: dict[Hashable, StepPlan] = field(default_factory=dict)

    def plan(self, key: Hashable, make: Callable[[], StepPlan]) -> StepPlan:
        """The plan for some losses, options and selected parameters."""
        if key not in self.plans:
            self.plans[key] = make()
        return self.plans[key]


_KNOWN: OrderedDict[Hashable, Topology] = OrderedDict()
_LOCK = threading.Lock()


def topology(graph: Graph, signature: Hashable, batch: Sequence[Any], derive: Callable[[], Topology]) -> Topology:
    """The topology of a graph: the one that is remembered by its signature, if it serves this batch."""
    with _LOCK:
        known = _KNOWN.get(signature)
        if known is not None:
            _KNOWN.move_to_end(signature)
    if known is not None and known.places.serves(graph, batch):
        return known
    derived = derive()
    if not derived.places.by_data:
        with _LOCK:
            _KNOWN[signature] = derived
            if len(_KNOWN) > REMEMBERED:
                _KNOWN.popitem(last=False)
    return derived
