"""Products and normalisations: what has weights."""

from collections.abc import Callable

from harmony.engines.tape import autograd_fields as fields
from harmony.engines.tape.layout import Mark, State, aligned, on_axis
from harmony.engines.tape.site import Site


def product(site: Site, first: int = 0) -> State:
    """``mm`` and ``bmm``: factors from slot ``first`` on."""
    axis, batched = site.place.axis, len(site.output) - 2
    if axis < batched or axis - batched == site.slot - first:
        return site.place
    return Mark.COMMON


def sum_and_product(site: Site) -> State:
    return aligned(site.place, site.output, site.input) if site.slot == 0 else product(site, first=1)


def with_weights(site: Site, allowed: bool = True) -> State:
    """The first input holds the samples at the same place, where the op allows it; the other inputs are weights."""
    if not allowed:
        return Mark.UNKNOWN
    return site.place if site.slot == 0 else Mark.COMMON


def attention(site: Site) -> State:
    """Scaled dot products (b, heads, queries, features) of queries, keys, values; perhaps a bias on the scores."""
    axis = site.place.axis
    if axis > len(site.output) - 3:
        return Mark.UNKNOWN
    fewer_heads = site.slot < 3 and site.input[axis] != site.output[axis]  # of keys and values
    return Mark.UNKNOWN if fewer_heads else aligned(site.place, site.output, site.input)


def layer_norm(site: Site) -> State:
    """Over the last axes, as many as the scale has."""
    scale = next((shape for shape in site.inputs[1:] if shape is not None), site.output[-1:])
    normalized = len(fields.saved_or_none(site.node, "normalized_shape") or scale)
    if site.slot > 0:
        return Mark.COMMON
    return Mark.MIXED if site.place.axis >= len(site.output) - normalized else site.place


def batch_norm(site: Site) -> State:
    """By running statistics, or by those of each channel where the samples are among the channels (instance norm)."""
    among_channels = site.place.axis == 1
    if site.saved("training") and not among_channels:
        return Mark.MIXED
    if site.slot == 0:
        return site.place
    return on_axis(site.place, 0) if among_channels else Mark.COMMON


_ATTENTION = "CudnnAttention EfficientAttention FlashAttention FlashAttentionForCpu FusedAttentionOverrideable"
RULES: dict[str, Callable[[Site], State]] = {
    "Addmm": sum_and_product,
    "Baddbmm": sum_and_product,
    "Bmm": product,
    "Convolution": lambda site: with_weights(site, site.place.axis == 0),
    "Embedding": lambda site: Mark.COMMON,
    "FusedRmsNorm": layer_norm,
    "Linear": lambda site: with_weights(site, site.place.axis < len(site.output) - 1),
    "Mm": product,
    "Mv": with_weights,
    "NativeGroupNorm": lambda site: with_weights(site, site.place.axis == 0),
    "NativeLayerNorm": layer_norm,
    **dict.fromkeys(["CudnnBatchNorm", "MiopenBatchNorm", "NativeBatchNorm"], batch_norm),
    **{f"ScaledDotProduct{kind}": attention for kind in _ATTENTION.split()},
}
