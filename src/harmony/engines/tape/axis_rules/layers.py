"""Products and normalisations: what has weights."""

from harmony.engines.tape.axis_rules.op import Claims, Mark, Op, State
from harmony.engines.tape.axis_rules.places import aligned, at


def product(op: Op, first: int = 0) -> Claims:
    """``mm``, ``bmm``, and their sums with a tensor, which then comes first."""
    axis, batched = op.place.axis, len(op.shape) - 2
    if axis < batched:
        factors: list[State] = [op.place, op.place]
    elif axis == batched:
        factors = [op.place, Mark.COMMON]
    else:
        factors = [Mark.COMMON, op.place]
    claims: list[State | None] = []
    for slot, shape in enumerate(op.inputs):
        if shape is None:
            claims.append(None)
        else:
            claims.append(aligned(op.place, op.shape, shape) if slot < first else factors[slot - first])
    return claims


def sum_and_product(op: Op) -> Claims:
    """``addmm``, ``baddbmm``."""
    return product(op, first=1)


def matrix_vector(op: Op) -> Claims:
    """``mv``."""
    claims: list[State] = [op.place, Mark.COMMON]
    return [None if shape is None else claim for shape, claim in zip(op.inputs, claims, strict=True)]


def linear(op: Op) -> Claims:
    """``linear`` as one op, for inputs of any rank."""
    claims: list[State] = [op.place, Mark.COMMON, Mark.COMMON]
    if op.place.axis == len(op.shape) - 1:
        return [Mark.UNKNOWN] * len(op.inputs)
    return [None if shape is None else claim for shape, claim in zip(op.inputs, claims, strict=False)]


def convolution(op: Op) -> Claims:
    """Samples on the first axis; channels are what a convolution mixes."""
    if op.place.axis != 0:
        return [Mark.UNKNOWN] * len(op.inputs)
    return [None if shape is None else op.place if slot == 0 else Mark.COMMON for slot, shape in enumerate(op.inputs)]


def attention(op: Op) -> Claims:
    """Scaled dot products (b, heads, queries, features) of queries, keys, values; perhaps a bias on the scores."""
    if op.place.axis > len(op.shape) - 3:
        return [Mark.UNKNOWN] * len(op.inputs)
    claims: list[State | None] = []
    for slot, shape in enumerate(op.inputs):
        if shape is None:
            claims.append(None)
        elif slot < 3 and shape[op.place.axis] != op.shape[op.place.axis]:  # fewer heads of keys and values
            claims.append(Mark.UNKNOWN)
        else:
            claims.append(aligned(op.place, op.shape, shape))
    return claims


def layer_norm(op: Op) -> Claims:
    """Over the last axes, as many as the scale has."""
    scale = next((shape for shape in op.inputs[1:] if shape is not None), op.shape[-1:])
    normalised = op.place.axis >= len(op.shape) - len(scale)
    if hasattr(op.node, "_saved_normalized_shape"):
        normalised = op.place.axis >= len(op.shape) - len(op.option("normalized_shape"))
    own: State = Mark.MIXED if normalised else op.place
    return [None if shape is None else own if slot == 0 else Mark.COMMON for slot, shape in enumerate(op.inputs)]


def group_norm(op: Op) -> Claims:
    """Samples on the first axis."""
    own: State = op.place if op.place.axis == 0 else Mark.UNKNOWN
    return [None if shape is None else own if slot == 0 else Mark.COMMON for slot, shape in enumerate(op.inputs)]


def batch_norm(op: Op) -> Claims:
    """By running statistics, or by those of each channel where the samples are among the channels (instance norm)."""
    among_channels = op.place.axis == 1
    if op.option("training") and not among_channels:
        return [None if shape is None else Mark.MIXED for shape in op.inputs]
    scale = at(op.place, 0) if among_channels else Mark.COMMON
    return [None if shape is None else op.place if slot == 0 else scale for slot, shape in enumerate(op.inputs)]


def table(op: Op) -> Claims:
    """``embedding``."""
    return [None if shape is None else Mark.COMMON for shape in op.inputs]


_ATTENTION = "CudnnAttention EfficientAttention FlashAttention FlashAttentionForCpu FusedAttentionOverrideable"
RULES = {
    "Addmm": sum_and_product,
    "Baddbmm": sum_and_product,
    "Bmm": product,
    "Convolution": convolution,
    "Embedding": table,
    "FusedRmsNorm": layer_norm,
    "Linear": linear,
    "Mm": product,
    "Mv": matrix_vector,
    "NativeGroupNorm": group_norm,
    "NativeLayerNorm": layer_norm,
    **dict.fromkeys(["CudnnBatchNorm", "MiopenBatchNorm", "NativeBatchNorm"], batch_norm),
    **{f"ScaledDotProduct{kind}": attention for kind in _ATTENTION.split()},
}
