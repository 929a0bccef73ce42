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
    """``addmm``, ``baddbmm``."""
    return aligned(site.place, site.output, site.input) if site.slot == 0 else product(site, first=1)


def matrix_vector(site: Site) -> State:
    """``mv``."""
    return site.place if site.slot == 0 else Mark.COMMON


def linear(site: Site) -> State:
    """``linear`` as one op, for inputs of any rank."""
    return Mark.UNKNOWN if site.place.axis == len(site.output) - 1 else matrix_vector(site)


def over_channels(site: Site) -> State:
    """Convolutions and group norms: samples on the first axis; channels are what they mix."""
    return Mark.UNKNOWN if site.place.axis != 0 else matrix_vector(site)


def attention(site: Site) -> State:
    """Scaled dot products (b, heads, queries, features) of queries, keys, values; perhaps a bias on the scores."""
    axis = site.place.axis
    if axis > len(site.output) - 3 or (
        site.slot < 3 and site.input[axis] != site.output[axis]
    ):  # fewer heads of keys and values
        return Mark.UNKNOWN
    return aligned(site.place, site.output, site.input)


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
    "Convolution": over_channels,
    "Embedding": lambda site: Mark.COMMON,
    "FusedRmsNorm": layer_norm,
    "Linear": linear,
    "Mm": product,
    "Mv": matrix_vector,
    "NativeGroupNorm": over_channels,
    "NativeLayerNorm": layer_norm,
    **dict.fromkeys(["CudnnBatchNorm", "MiopenBatchNorm", "NativeBatchNorm"], batch_norm),
    **{f"ScaledDotProduct{kind}": attention for kind in _ATTENTION.split()},
}
