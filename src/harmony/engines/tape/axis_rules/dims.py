"""Ops that broadcast, and ops along some dimensions, beside which all others lie side by side."""

from collections.abc import Callable, Container

from harmony.engines.tape.layout import Mark, State, aligned, on_axis, place_of_rows
from harmony.engines.tape.site import Site


def copies(site: Site) -> State | None:
    """``repeat``: tiles side by side, along any axis."""
    axis = site.place.axis - (len(site.output) - len(site.input))
    if axis < 0:
        return Mark.COMMON
    if site.output[site.place.axis] == site.input[axis]:
        return on_axis(site.place, axis)
    tiles = site.ids.view(-1, site.input[axis])
    return place_of_rows(axis, tiles[0], site.size) if bool((tiles == tiles[0]).all()) else Mark.COMMON


def outside(site: Site, dims: Container[int], otherwise: Mark = Mark.UNKNOWN) -> State:
    """The same place, where the op acts along other dimensions alone, beside which all lies side by side."""
    axis = site.place.axis
    untouched = axis not in dims and len(site.input) == len(site.output) and site.input[axis] == site.output[axis]
    return site.place if untouched else otherwise


def over_last(n: int) -> Callable[[Site], State]:
    """Ops on the last n axes: pooling, resampling, factorisations."""
    return lambda site: outside(site, range(len(site.output) - n, len(site.output)))


def reduced(site: Site) -> State:
    """Sums, means, maxima: dimensions that are gone, or of length 1."""
    ndim = len(site.input)
    dims = site.dims("dim", ndim)
    kept = [axis for axis in range(ndim) if ndim == len(site.output) or axis not in dims]
    axis = kept[site.place.axis]
    return Mark.UNKNOWN if axis in dims else on_axis(site.place, axis)


_ELEMENTWISE = (
    "Abs Acos Acosh Add Addcdiv Addcmul Alias Angle Asin Asinh Atan Atan2 Atanh Celu Clamp ClampMax ClampMin Clone "
    "Complex Conj ConjPhysical Copy Copysign Cos Cosh Deg2Rad Detach Digamma Div Elu Erf Erfc Erfinv Exp Exp2 Expand "
    "Expm1 Fmax Fmin Fmod Frac FusedDropout Gelu Hardshrink Hardsigmoid Hardswish Hardtanh Hypot I0 LeakyRelu Lerp "
    "Lgamma Log Log10 Log1p Log2 LogSigmoid Logaddexp Logaddexp2 Logit MaskedFill Maximum Minimum Mish Mul NanToNum "
    "NativeDropout Neg Polar Polygamma Pow PreluKernel Rad2Deg Reciprocal Relu Remainder ResolveConj ResolveNeg "
    "RreluWithNoise Rsqrt Rsub Sgn Sigmoid Sign Silu Sin Sinc Sinh Softplus Softshrink SpecialEntr SpecialErfcx "
    "SpecialI0E SpecialI1 SpecialLogNdtr SpecialNdtri SpecialXlog1Py Sqrt Square Sub Tan Tanh Threshold ToCopy Tril "
    "Triu Where Xlogy"
)
_REDUCED = (
    "Amax Amin Kthvalue LinalgVectorNorm Logsumexp Max Mean Median Min Mode Nanmean Nanmedian Nansum Norm Prod Std Sum "
    "Var"
)
_REORDERED = "Flip Roll"
_GATHERED = "Gather ScatterAdd Scatter ScatterReduce Sort Topk"
_ALONG = "Cummax Cummin Cumprod Cumsum FftC2C FftC2R FftR2C Glu LogSoftmax Logcumsumexp SafeSoftmax Softmax"
_OVER_LAST = {
    1: "AdaptiveMaxPool1D ReflectionPad1D ReplicationPad1D UpsampleLinear1D UpsampleNearest1D UpsampleNearestExact1D",
    2: (
        "AdaptiveAvgPool2D AdaptiveMaxPool2D AvgPool2D Cdist Col2Im FractionalMaxPool2D Im2Col LinalgCholeskyEx "
        "LinalgInvEx LinalgLuFactorEx LinalgMatrixExp MaxPool2DWithIndices MkldnnAdaptiveAvgPool2D ReflectionPad2D "
        "ReplicationPad2D UpsampleBicubic2D UpsampleBicubic2DAa UpsampleBilinear2D UpsampleBilinear2DAa "
        "UpsampleNearest2D UpsampleNearestExact2D"
    ),
    3: (
        "AdaptiveAvgPool3D AdaptiveMaxPool3D AvgPool3D ChannelShuffle GridSampler2D MaxPool3DWithIndices PixelShuffle "
        "PixelUnshuffle ReflectionPad3D ReplicationPad3D UpsampleNearest3D UpsampleNearestExact3D UpsampleTrilinear3D"
    ),
    4: "GridSampler3D",
}
RULES: dict[str, Callable[[Site], State | None]] = {
    "Repeat": copies,
    **dict.fromkeys(_ELEMENTWISE.split(), lambda site: aligned(site.place, site.output, site.input)),
    **dict.fromkeys(_REDUCED.split(), reduced),
    **dict.fromkeys(_REORDERED.split(), lambda site: outside(site, site.dims("dims"), Mark.MIXED)),
    **dict.fromkeys(_ALONG.split(), lambda site: outside(site, site.dims("dim"), Mark.MIXED)),
    **dict.fromkeys(_GATHERED.split(), lambda site: outside(site, site.dims("dim"))),
    **{name: over_last(n) for n, names in _OVER_LAST.items() for name in names.split()},
}
