"""Products and normalisations: what has weights."""

from harmony.engines.tape import autograd_fields as fields
from harmony.engines.tape.axis_rules.op import Op
from harmony.engines.tape.layout import Mark, State, aligned, on_axis


def product(op: Op, first: int = 0) -> State:
    """``mm`` and ``bmm``: factors from slot ``first`` on."""
    axis, batched = op.place.axis, len(op.shape) - 2
    if axis < batched or axis - batched == op.slot - first:
        return op.place
    return Mark.COMMON


def sum_and_product(op: Op) -> State:
    """``addmm``, ``baddbmm``."""
    return aligned(op.place, op.shape, op.input) if op.slot == 0 else product(op, first=1)


def matrix_vector(op: Op) -> State:
    """``mv``."""
    return op.place if op.slot == 0 else Mark.COMMON


def linear(op: Op) -> State:
    """``linear`` as one op, for inputs of any rank."""
    return Mark.UNKNOWN if op.place.axis == len(op.shape) - 1 else matrix_vector(op)


def over_channels(op: Op) -> State:
    """Convolutions and group norms: samples on the first axis; channels are what they mix."""
    return Mark.UNKNOWN if op.place.axis != 0 else matrix_vector(op)


def attention(op: Op) -> State:
    """Scaled dot products (b, heads, queries, features) of queries, keys, values; perhaps a bias on the scores."""
    axis = op.place.axis
    if axis > len(op.shape) - 3 or (op.slot < 3 and op.input[axis] != op.shape[axis]):  # fewer heads of keys and values
        return Mark.UNKNOWN
    return aligned(op.place, op.shape, op.input)


def layer_norm(op: Op) -> State:
    """Over the last axes, as many as the scale has."""
    scale = next((shape for shape in op.inputs[1:] if shape is not None), op.shape[-1:])
    normalized = len(fields.saved_or_none(op.node, "normalized_shape") or scale)
    if op.slot > 0:
        return Mark.COMMON
    return Mark.MIXED if op.place.axis >= len(op.shape) - normalized else op.place


def batch_norm(op: Op) -> State:
    """By running statistics, or by those of each channel where the samples are among the channels (instance norm)."""
    among_channels = op.place.axis == 1
    if op.option("training") and not among_channels:
        return Mark.MIXED
    if op.slot == 0:
        return op.place
    return on_axis(op.place, 0) if among_channels else Mark.COMMON


def table(op: Op) -> State:
    """``embedding``."""
    return Mark.COMMON


_ATTENTION = "CudnnAttention EfficientAttention FlashAttention FlashAttentionForCpu FusedAttentionOverrideable"
RULES = {
    "Addmm": sum_and_product,
    "Baddbmm": sum_and_product,
    "Bmm": product,
    "Convolution": over_channels,
    "Embedding": table,
    "FusedRmsNorm": layer_norm,
    "Linear": linear,
    "Mm": product,
    "Mv": matrix_vector,
    "NativeGroupNorm": over_channels,
    "NativeLayerNorm": layer_norm,
    **dict.fromkeys(["CudnnBatchNorm", "MiopenBatchNorm", "NativeBatchNorm"], batch_norm),
    **{f"ScaledDotProduct{kind}": attention for kind in _ATTENTION.split()},
}
