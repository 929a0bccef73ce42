"""Cheaper choices of ``wrt``, with what they would save on an encoder, from the tape's own estimates."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, get_args

from harmony.blocks import LastPart, last_block, last_part
from harmony.engines.call import EncoderCall
from harmony.engines.options import Engine
from harmony.engines.run import Cotangent
from harmony.engines.tape.engine import Recorded
from harmony.engines.tape.explain import explain
from harmony.engines.tape.graph import Graph, Output

HALF = 0.5  # of the work of the Gram: what saves less is not proposed


class Proposal(NamedTuple):
    """A choice of ``wrt`` that costs less than all parameters.

    Attributes:
        wrt: The choice.
        part: What that is: a module, or a parameter.
        work: Its floating-point operations for the Gram, as a share of those over all parameters.
        passes: The ops that its backward passes of the losses go through, as a share likewise.
    """

    wrt: LastPart
    part: str
    work: float
    passes: float

    def __str__(self) -> str:
        """One line, whose beginning can be pasted."""
        return (
            f'wrt="{self.wrt}" ({self.part}): {self.work:.0%} of the MFLOP, passes through {self.passes:.0%} of the ops'
        )


def proposals(
    recorded: Recorded,
    call: EncoderCall,
    engine: Engine,
    per_loss: Sequence[Cotangent],
    reached: Sequence[Sequence[bool]],
) -> list[Proposal]:
    """The named parts of an encoder over which the Gram takes less than half the work, the dearest first.

    Args:
        recorded: The recorded encoder.
        call: Its call, with the Gram over all parameters.
        engine: How the step is taken.
        per_loss: Cotangents of the K losses.
        reached: For each loss, which parameters it reaches. A part has to be reached by all that reach any.
    """
    flops, ops = _cost(recorded, call, engine, per_loss)
    losses = [loss for loss in reached if any(loss)]
    result = []
    for wrt in get_args(LastPart):
        try:
            names = last_part(wrt, dict(zip(call.names, call.params, strict=True)))
        except ValueError:  # no repeated blocks, or several lists of them
            continue
        chosen = [name in names for name in call.names]
        if not all(any(map(min, chosen, loss)) for loss in losses):
            continue
        part = call._replace(label=[int(flag) - 1 for flag in chosen], labels=[])
        own_flops, own_ops = _cost(recorded, part, engine, per_loss)
        if own_flops < HALF * flops:
            name = names[0] if len(names) == 1 else last_block(call.names).rstrip(".")
            result.append(Proposal(wrt, name, own_flops / flops, own_ops / max(ops, 1)))
    return result


def _cost(recorded: Recorded, call: EncoderCall, engine: Engine, per_loss: Sequence[Cotangent]) -> tuple[float, int]:
    """Operations for the Gram of one group, and the number of ops that its passes go through."""
    blocks = recorded.plan(call, engine, per_loss, fused=True).blocks
    counted = [block for block in blocks if block.counted]
    outputs = set().union(*(block.outputs for block in counted))
    flops = sum(row.flops for row in explain(call, counted))
    return flops, _ops_above(recorded.graph, outputs)


def _ops_above(graph: Graph, outputs: Iterable[Output]) -> int:
    """How many ops a backward pass goes through to reach some outputs."""
    wanted = {node for node, _ in outputs}
    above: set[int] = set()
    for node in reversed(graph.order()):  # an op after all that it uses
        if any(source in wanted or source in above for source, _ in graph.sources(node)):
            above.add(node)
    return len(above)
