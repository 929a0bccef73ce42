"""Ops along dimensions: all other dimensions lie side by side."""

from collections.abc import Callable

from harmony.engines.tape.axis_rules.op import Claims, Mark, Op, State
from harmony.engines.tape.axis_rules.places import at
from harmony.engines.tape.graph import signed


def along_dims(*names: str) -> Callable[[Op], Claims]:
    """Ops that act along some dimensions, keep the number of axes, and treat all others side by side."""

    def rule(op: Op) -> Claims:
        acted = set().union(*(op.dims(name, len(op.shape)) for name in names))
        state = Mark.MIXED if op.place.axis in acted else op.place
        return [None if shape is None else state for shape in op.inputs]

    return rule


def reduced(op: Op) -> Claims:
    """Sums, means, maxima: dimensions that are gone, or of length 1."""
    shape = op.input
    dims = op.dims("dim", len(shape))
    kept = list(range(len(shape))) if len(shape) == len(op.shape) else [a for a in range(len(shape)) if a not in dims]
    axis = kept[op.place.axis]
    return [op.place if axis == op.place.axis else at(op.place, axis)] if axis not in dims else [Mark.UNKNOWN]


def over_last(n: int) -> Callable[[Op], Claims]:
    """Ops on the last n axes: pooling, resampling, factorisations. All axes before lie side by side."""

    def rule(op: Op) -> Claims:
        axis, claims = op.place.axis, list[State | None]()
        for shape in op.inputs:
            if shape is None:
                claims.append(None)
            elif axis < len(op.shape) - n and len(shape) == len(op.shape) and shape[axis] == op.shape[axis]:
                claims.append(op.place)
            else:
                claims.append(Mark.UNKNOWN)
        return claims

    return rule


def windows(op: Op) -> Claims:
    """``unfold``: windows along one dimension, in a new last axis."""
    dim, axis = signed(op.option("dimension")) % (len(op.shape) - 1), op.place.axis
    return [Mark.UNKNOWN if axis in (dim, len(op.shape) - 1) else op.place]


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
    "Flip": along_dims("dims"),
    "Roll": along_dims("dims"),
    "Unfold": windows,
    **dict.fromkeys(_REDUCED.split(), reduced),
    **dict.fromkeys(_ALONG.split(), along_dims("dim")),
    **{name: over_last(n) for n, names in _OVER_LAST.items() for name in names.split()},
}
