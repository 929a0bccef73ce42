"""What the tape does with each parameter, in words and numbers."""

from collections import Counter
from typing import NamedTuple

from harmony.engines.call import EncoderCall
from harmony.engines.tape.param_use import OpaqueUse
from harmony.engines.tape.plan import ParamBlock


class Row(NamedTuple):
    """What is done for one parameter.

    Attributes:
        name: The parameter.
        shape: Its shape.
        ops: The ops that use it, or something made of it, and how often.
        choice: ``"instantiate"``, its per-sample gradients are computed; ``"ghost"``, only their products are;
            ``"opaque"``, an op has no closed form and runs its own backward once a sample; ``"update only"``, it is
            not part of the Gram; ``"unused"``.
        flops: Estimated floating-point operations for the Gram, for one group of samples.
        bytes_moved: Estimated memory traffic, likewise.
    """

    name: str
    shape: tuple[int, ...]
    ops: str
    choice: str
    flops: float
    bytes_moved: float


def explain(call: EncoderCall, blocks: list[ParamBlock]) -> list[Row]:
    """One row for each parameter of a call."""
    block_of = {p: block for block in blocks for p in block.params}
    return [_row(number, call, block_of.get(number)) for number in range(len(call.names))]


def _row(number: int, call: EncoderCall, block: ParamBlock | None) -> Row:
    name, shape = call.names[number], tuple(call.params[number].shape)
    uses = [] if block is None else [use for t in block.tensors if number in t.params for use, _ in t.uses]
    if block is None or not uses:
        return Row(name, shape, "", "unused" if call.selected[number] else "update only", 0.0, 0.0)
    ops = Counter(use.site.op.rpartition("::")[2].replace("Backward", " ").split()[0] for use in uses)
    opaque = any(isinstance(use, OpaqueUse) for use in uses)
    choice = "opaque" if opaque else block.choice if block.counted else "update only"
    place = block.params.index(number)
    listed = ", ".join(f"{op} {count}" for op, count in ops.items())
    return Row(name, shape, listed, choice, block.flops[place], block.bytes[place])
