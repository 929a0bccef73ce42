"""Ops along dimensions: all other dimensions lie side by side."""

from collections.abc import Callable, Container

from harmony.engines.tape.axis_rules.op import Op
from harmony.engines.tape.layout import Mark, State, on_axis


def _outside(op: Op, dims: Container[int], otherwise: Mark = Mark.UNKNOWN) -> State:
    """The same place where the op acts along other dimensions alone."""
    axis = op.place.axis
    untouched = axis not in dims and len(op.input) == len(op.shape) and op.input[axis] == op.shape[axis]
    return op.place if untouched else otherwise


def along(op: Op) -> State:
    """Sums, orders and maps along one dimension, which mix all that lies along it."""
    return _outside(op, op.dims(len(op.shape)), Mark.MIXED)


def reordered(op: Op) -> State:
    """``flip``, ``roll``."""
    return _outside(op, op.dims(len(op.shape), "dims"), Mark.MIXED)


def gathered(op: Op) -> State:
    """``gather``, ``sort``, ``topk``, ``scatter_add`` and the like, along other axes than that of the samples."""
    return _outside(op, op.dims(len(op.shape)))


def over_last(n: int) -> Callable[[Op], State]:
    """Ops on the last n axes: pooling, resampling, factorisations."""
    return lambda op: _outside(op, range(len(op.shape) - n, len(op.shape)))


def reduced(op: Op) -> State:
    """Sums, means, maxima: dimensions that are gone, or of length 1."""
    ndim = len(op.input)
    dims = op.dims(ndim)
    kept = [axis for axis in range(ndim) if ndim == len(op.shape) or axis not in dims]
    axis = kept[op.place.axis]
    return Mark.UNKNOWN if axis in dims else on_axis(op.place, axis)


_REDUCED = (
    "Amax Amin Kthvalue LinalgVectorNorm Logsumexp Max Mean Median Min Mode Nanmean Nanmedian Nansum Norm Prod Std Sum "
    "Var"
)
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
RULES = {
    **dict.fromkeys(["Flip", "Roll"], reordered),
    **dict.fromkeys(["Gather", "ScatterAdd", "Scatter", "ScatterReduce", "Sort", "Topk"], gathered),
    **dict.fromkeys(_REDUCED.split(), reduced),
    **dict.fromkeys(_ALONG.split(), along),
    **{name: over_last(n) for n, names in _OVER_LAST.items() for name in names.split()},
}
