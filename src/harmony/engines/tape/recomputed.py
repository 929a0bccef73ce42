"""Read what autograd has saved, where activation checkpointing computes it again: once, and all of a region at once."""

from collections.abc import Callable
from typing import TypeVar

import torch

from harmony.engines.eager import eagerly
from harmony.engines.tape import autograd_fields as fields
from harmony.engines.tape.graph import Graph

Result = TypeVar("Result")


@eagerly()
def reading(graph: Graph, read: Callable[[Graph], Result]) -> Result:
    """Call a function that reads what a graph has saved, inside a backward pass of nothing.

    Activation checkpointing computes a region again for each backward pass that reads of it, or for each tensor outside
    of any. It then holds all tensors of the region until they are read: the others are read here and dropped.
    """
    results: list[Result] = []

    def run(grad: object) -> None:
        fresh = graph._replace(read={})
        results.append(read(fresh))
        _drop_others(fresh)

    with torch.enable_grad():
        start = torch.zeros((), requires_grad=True)
        end = start.clone()
    end.register_hook(run)  # type: ignore[no-untyped-call]
    torch.autograd.grad(end, start)
    return results[0]


def _drop_others(graph: Graph) -> None:
    """Read what was not yet read of the regions that were."""
    computed = {graph.recomputed[node].get(name) for node, names in graph.read.items() for name in names}
    for node, names in enumerate(graph.recomputed):
        for name in names.keys() - graph.read.get(node, {}).keys():
            if names[name] in computed:
                fields.saved(graph.nodes[node], name)
