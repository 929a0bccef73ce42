"""How each op carries the samples from its outputs back to its inputs.

A rule sees where the samples lie in the outputs of an op and tells where they lie in its inputs: at some place, or
shared by all of them, as the weight of a linear map is. Rules rest on what an op means, not on the values at hand, so
that they hold for every batch. What has no rule here is found by experiment, on every batch.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from harmony.engines.tape.graph import signed
from harmony.engines.tape.layout import NOBODY, Layout, Place, RowMap, place_of, row_ids
from harmony.engines.tape.op import Claims, Mark, Op, State

SEVERAL = -2
"""Mark of an entry that the gradients of several samples reach."""


def at(place: Place, axis: int) -> Place:
    """The same rows along another axis."""
    return place._replace(axis=axis) if isinstance(place, Layout) else RowMap(axis, place.ids, place.size)


def place_of_entries(entries: Tensor, size: int) -> State | None:
    """The place of entries (any shape) that belong to the samples given, or what else can be said of them.

    Args:
        entries: Number of the sample of each entry; ``NOBODY``, or ``SEVERAL``.
        size: B.
    """
    single, several = entries >= 0, entries == SEVERAL
    if not bool(single.any()):
        return Mark.SHARED if bool(several.any()) else None
    if bool(several.any()) or entries.ndim == 0:
        return Mark.MIXED
    candidates = []
    for axis in range(entries.ndim):
        flat = entries.movedim(axis, 0).reshape(entries.shape[axis], -1)
        highest = flat.max(1).values
        lowest = torch.where(flat < 0, size, flat).min(1).values
        if bool(((highest < 0) | (highest == lowest)).all()):
            candidates.append(place_of(axis, highest.cpu(), size))
    regular = [place for place in candidates if isinstance(place, Layout)]
    return (regular or candidates or [Mark.MIXED])[0]


# Elementwise ops, broadcasting


def broadcast(op: Op) -> Claims:
    """Every input is aligned with the output from the last axis on."""
    return [None if shape is None else aligned(op.place, op.shape, shape) for shape in op.inputs]


def aligned(place: Place, output: Sequence[int], shape: Sequence[int]) -> State:
    """Place in an input of this shape that broadcasts to the output."""
    axis = place.axis - (len(output) - len(shape))
    if axis < 0 or (shape[axis] == 1 and output[place.axis] > 1):
        return Mark.SHARED
    return at(place, axis)


def copies(op: Op) -> Claims:
    """``repeat``: tiles side by side, along any axis."""
    shape = op.input
    place, output = op.place, op.shape
    axis = place.axis - (len(output) - len(shape))
    if axis < 0:
        return [Mark.SHARED]
    if output[place.axis] == shape[axis]:
        return [at(place, axis)]
    tiles = row_ids(place, output[place.axis], op.size).view(-1, shape[axis])
    return [place_of(axis, tiles[0], op.size) if bool((tiles == tiles[0]).all()) else Mark.SHARED]


# Views


def reshaped(op: Op) -> Claims:
    """A view keeps the order of all entries."""
    shape = op.input
    place = op.place
    if isinstance(place, RowMap):
        return [_reshaped_rows(place, op.shape, shape)]
    before = math.prod(op.shape[: place.axis]) * place.outer
    after = math.prod(op.shape[place.axis + 1 :]) * place.inner
    for axis, entries in enumerate(shape):
        outer, rest = divmod(before, math.prod(shape[:axis]))
        inner, more = divmod(after, math.prod(shape[axis + 1 :]))
        if not rest and not more and outer * op.size * inner == entries:
            return [Layout(axis, outer, inner)]
    return [Mark.UNKNOWN]


def _reshaped_rows(place: RowMap, output: Sequence[int], shape: Sequence[int]) -> State | None:
    output, shape = list(output), list(shape)
    while len(output) > place.axis + 1 and shape and output[-1] == shape[-1]:  # what both have in common
        output.pop(), shape.pop()
    entries = place.ids.view([-1 if axis == place.axis else 1 for axis in range(len(output))]).expand(output)
    return place_of_entries(entries.reshape(shape), place.size)


def permuted(op: Op) -> Claims:
    """``permute``."""
    dims = [signed(d) % len(op.shape) for d in op.option("dims")]
    return [at(op.place, dims[op.place.axis])]


def transposed(op: Op) -> Claims:
    """``transpose``."""
    dims = [signed(op.option(name)) % len(op.shape) for name in ("dim0", "dim1")]
    axis = op.place.axis
    return [at(op.place, dims[1 - dims.index(axis)] if axis in dims else axis)]


def flipped(op: Op) -> Claims:
    """``t``."""
    return [at(op.place, len(op.shape) - 1 - op.place.axis)]


def same_axis(op: Op) -> Claims:
    """Ops that leave the sample axis alone wherever it is."""
    return [None if shape is None else at(op.place, op.place.axis) for shape in op.inputs]


# Parts and what is put together of parts


def part(op: Op) -> Claims:
    """``slice``, ``select``, ``split``, ``unbind``: a part of one input along a dimension."""
    shape, place = op.input, op.place
    dim = signed(op.option("dim")) % len(shape)
    removed = len(op.shape) < len(shape)
    axis = place.axis + (removed and place.axis >= dim)
    if removed or axis != dim:
        return [at(place, axis)]
    ids = torch.full((shape[dim],), NOBODY)
    ids[_rows_of_part(op, dim)] = row_ids(place, op.shape[dim], op.size)
    return [place_of(dim, ids, op.size)]


def _rows_of_part(op: Op, dim: int) -> slice:
    if "Slice" in op.node.name():
        return slice(signed(op.option("start")), signed(op.option("end")), op.option("step"))
    start = sum(shape[dim] for shape in op.outputs[: op.number])
    return slice(start, start + op.shape[dim])


def concatenated(op: Op) -> Claims:
    """``cat``."""
    dim, axis = signed(op.option("dim")) % len(op.shape), op.place.axis
    if dim != axis:
        return [None if shape is None else op.place for shape in op.inputs]
    lengths = [0 if shape is None else shape[dim] for shape in op.inputs]
    missing = [n for n, shape in enumerate(op.inputs) if shape is None]
    if len(missing) > 1:  # their lengths are not known
        return [Mark.UNKNOWN] * len(lengths)
    for n in missing:
        lengths[n] = op.shape[dim] - sum(lengths)
    pieces = row_ids(op.place, op.shape[dim], op.size).split(lengths)
    return [
        None if shape is None else place_of(dim, ids, op.size) for shape, ids in zip(op.inputs, pieces, strict=True)
    ]


def stacked(op: Op) -> Claims:
    """``stack``."""
    dim, axis = signed(op.option("dim")) % len(op.shape), op.place.axis
    if dim != axis:
        return [None if shape is None else at(op.place, axis - (axis > dim)) for shape in op.inputs]
    ids = row_ids(op.place, op.shape[dim], op.size)
    return [
        None if shape is None else RowMap(0, ids[n].expand(shape[0]), op.size) if shape else Mark.UNKNOWN
        for n, shape in enumerate(op.inputs)
    ]


def padded(op: Op) -> Claims:
    """``pad`` by constants."""
    shape = op.input
    pad, axis = op.option("pad"), op.place.axis
    number = len(shape) - 1 - axis
    if 2 * number >= len(pad) or not any(pad[2 * number : 2 * number + 2]):
        return [op.place]
    return [Mark.UNKNOWN]


# Ops along dimensions


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
        axis, claims = op.place.axis, []
        for shape in op.inputs:
            if shape is None:
                claims.append(None)
            elif axis < len(op.shape) - n and len(shape) > axis and shape[axis] == op.shape[axis]:
                claims.append(op.place)
            else:
                claims.append(Mark.UNKNOWN)
        return claims

    return rule


def windows(op: Op) -> Claims:
    """``unfold``: windows along one dimension, in a new last axis."""
    dim, axis = signed(op.option("dimension")) % (len(op.shape) - 1), op.place.axis
    return [Mark.UNKNOWN if axis in (dim, len(op.shape) - 1) else op.place]


# Products


def product(op: Op, first: int = 0) -> Claims:
    """``mm``, ``bmm`` and their sums with a tensor, which then comes first: rows, columns, and products side by side."""
    axis, batched = op.place.axis, len(op.shape) - 2
    if axis < batched:
        factors: list[State] = [op.place, op.place]
    elif axis == batched:
        factors = [op.place, Mark.SHARED]
    else:
        factors = [Mark.SHARED, op.place]
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
    claims: list[State] = [op.place, Mark.SHARED]
    return [None if shape is None else claim for shape, claim in zip(op.inputs, claims, strict=True)]


def linear(op: Op) -> Claims:
    """``linear`` as one op, for inputs of any rank."""
    claims: list[State] = [op.place, Mark.SHARED, Mark.SHARED]
    if op.place.axis == len(op.shape) - 1:
        return [Mark.UNKNOWN] * len(op.inputs)
    return [None if shape is None else claim for shape, claim in zip(op.inputs, claims, strict=False)]


def convolution(op: Op) -> Claims:
    """Samples on the first axis; channels are what a convolution mixes."""
    if op.place.axis != 0:
        return [Mark.UNKNOWN] * len(op.inputs)
    return [None if shape is None else op.place if slot == 0 else Mark.SHARED for slot, shape in enumerate(op.inputs)]


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


# Normalisation


def layer_norm(op: Op) -> Claims:
    """Over the last axes, as many as the scale has."""
    scale = next((shape for shape in op.inputs[1:] if shape is not None), op.shape[-1:])
    normalised = op.place.axis >= len(op.shape) - len(scale)
    if hasattr(op.node, "_saved_normalized_shape"):
        normalised = op.place.axis >= len(op.shape) - len(op.option("normalized_shape"))
    own: State = Mark.MIXED if normalised else op.place
    return [None if shape is None else own if slot == 0 else Mark.SHARED for slot, shape in enumerate(op.inputs)]


def group_norm(op: Op) -> Claims:
    """Samples on the first axis."""
    own: State = op.place if op.place.axis == 0 else Mark.UNKNOWN
    return [None if shape is None else own if slot == 0 else Mark.SHARED for slot, shape in enumerate(op.inputs)]


def batch_norm(op: Op) -> Claims:
    """By running statistics, or by those of each channel where the samples are among the channels (instance norm)."""
    among_channels = op.place.axis == 1
    if op.option("training") and not among_channels:
        return [None if shape is None else Mark.MIXED for shape in op.inputs]
    scale = at(op.place, 0) if among_channels else Mark.SHARED
    return [None if shape is None else op.place if slot == 0 else scale for slot, shape in enumerate(op.inputs)]


# Tables, and rows picked by indices


def table(op: Op) -> Claims:
    """``embedding``."""
    return [None if shape is None else Mark.SHARED for shape in op.inputs]


def gathered(op: Op) -> Claims:
    """``gather``, ``take_along_dim``, ``sort``, ``topk``, ``scatter_add`` and the like along other axes than that of the samples."""
    dim, axis = signed(op.option("dim")) % max(len(op.shape), 1), op.place.axis
    claims: list[State | None] = []
    for shape in op.inputs:
        if shape is None:
            claims.append(None)
        elif dim != axis and len(shape) == len(op.shape) and shape[axis] == op.shape[axis]:
            claims.append(op.place)
        else:
            claims.append(Mark.UNKNOWN)
    return claims


def indexed(op: Op) -> Claims:
    """``x[indices]``: rows picked by index tensors, or by masks."""
    shape = op.input
    indices = as_indices(op.option("indices"))
    dims = [d for d, i in enumerate(indices) if i is not None]
    block = torch.broadcast_shapes(*(indices[d].shape for d in dims))  # type: ignore[union-attr]
    first = dims[0] if dims == list(range(dims[0], dims[-1] + 1)) else 0
    rest = [d for d in range(len(shape)) if d not in dims]
    within = op.place.axis - first
    if not 0 <= within < len(block):
        return [at(op.place, rest[op.place.axis - (len(block) if op.place.axis >= first else 0)])]
    ids = row_ids(op.place, op.shape[op.place.axis], op.size)
    device = indices[dims[0]].device  # type: ignore[union-attr]
    ids = ids.to(device).view([-1 if n == within else 1 for n in range(len(block))]).expand(block)
    sizes = [shape[d] for d in dims]
    flat = torch.zeros(block, dtype=torch.int64, device=device)
    for d, n in zip(dims, sizes, strict=True):
        flat = flat * n + indices[d] % n  # type: ignore[operator]
    entries = owners(flat.reshape(-1), ids.reshape(-1), math.prod(sizes)).view(sizes)
    return [_of_table(place_of_entries(entries, op.size), dims)]


def _of_table(state: State | None, dims: Sequence[int]) -> State | None:
    """A table of which several samples read one entry is shared by all."""
    if state is Mark.MIXED:
        return Mark.SHARED
    return state if state is None or isinstance(state, Mark) else at(state, dims[state.axis])


def owners(places: Tensor, ids: Tensor, entries: int) -> Tensor:
    """Number of the sample (entries,) that reaches each entry, given where each row (n,) goes and whose it is."""
    places, ids = places[ids >= 0], ids[ids >= 0]
    lowest = ids.new_full((entries,), torch.iinfo(ids.dtype).max).scatter_reduce(0, places, ids, "amin")
    highest = ids.new_full((entries,), NOBODY).scatter_reduce(0, places, ids, "amax")
    return torch.where(highest == NOBODY, NOBODY, torch.where(lowest == highest, highest, SEVERAL))


def as_indices(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Masks as the index tensors they stand for."""
    expanded: list[Tensor | None] = []
    for index in indices:
        masked = index is not None and index.dtype in (torch.bool, torch.uint8)
        expanded += list(index.nonzero(as_tuple=True)) if masked else [index]  # type: ignore[union-attr]
    return expanded


def index_selected(op: Op) -> Claims:
    """``index_select``."""
    shape = op.input
    dim = signed(op.option("dim")) % len(shape)
    if dim != op.place.axis:
        return [op.place]
    index: Tensor = op.option("index")
    ids = row_ids(op.place, op.shape[dim], op.size).to(index.device)
    return [_of_table(place_of_entries(owners(index, ids, shape[dim]), op.size), [dim])]


def index_put(op: Op) -> Claims:
    """``x[indices] = values``: the other rows keep their place, the values come from those that are written."""
    values = op.inputs[1]
    claims: list[State | None] = [None if op.inputs[0] is None else op.place, None]
    if values is None:
        return claims
    indices = as_indices(op.option("indices"))
    dims = [d for d, i in enumerate(indices) if i is not None]
    block = torch.broadcast_shapes(*(indices[d].shape for d in dims))  # type: ignore[union-attr]
    first = dims[0] if dims == list(range(dims[0], dims[-1] + 1)) else 0
    rest = [d for d in range(len(op.shape)) if d not in dims]
    output = [*(op.shape[d] for d in rest[:first]), *block, *(op.shape[d] for d in rest[first:])]
    if op.place.axis in rest:
        number = rest.index(op.place.axis)
        place: State | None = at(op.place, number if number < first else number + len(block))
    else:
        index: Any = indices[op.place.axis]
        ids = row_ids(op.place, op.shape[op.place.axis], op.size).to(index.device)
        state = place_of_entries(ids[index].expand(block), op.size)
        place = state if state is None or isinstance(state, Mark) else at(state, first + state.axis)
    if place is not None and not isinstance(place, Mark):
        place = aligned(place, output, values)
    claims[1] = place
    return claims


def index_added(op: Op) -> Claims:
    """``index_add``, ``index_copy``: rows written to, or added at, the places that an index tensor names."""
    dim = signed(op.option("dim")) % len(op.shape)
    own, source = op.inputs
    claims: list[State | None] = [None if own is None else op.place, None if source is None else op.place]
    if source is not None and dim == op.place.axis:
        index: Tensor = op.option("index")
        ids = row_ids(op.place, op.shape[dim], op.size).to(index.device)[index.reshape(-1)]
        claims[1] = place_of_entries(ids, op.size)
        if isinstance(claims[1], RowMap | Layout):
            claims[1] = at(claims[1], dim)
    return claims


Rule = Callable[[Op], Claims]

_ELEMENTWISE = (
    "Abs Acos Acosh Add Addcdiv Addcmul Alias Angle Asin Asinh Atan Atan2 Atanh Celu Clamp ClampMax ClampMin Clone "
    "Complex Conj ConjPhysical Contiguous Copy Copysign Cos Cosh Deg2Rad Detach Digamma Div Elu Erf Erfc Erfinv Exp "
    "Exp2 Expand Expm1 Fmax Fmin Fmod Frac FusedDropout Gelu HardshrinkBackward Hardshrink Hardsigmoid Hardswish Hardtanh "
    "Hypot I0 LeakyRelu Lerp Lgamma Log Log10 Log1p Log2 LogSigmoid Logaddexp Logaddexp2 Logit MaskedFill Maximum "
    "Minimum Mish Mul Mvlgamma NanToNum NativeDropout Neg Polar Polygamma Pow PreluKernel Rad2Deg Reciprocal Relu "
    "Remainder ResolveConj ResolveNeg Rrelu RreluWithNoise Rsqrt Rsub Sgn Sigmoid Sign Silu Sin Sinc Sinh Softplus "
    "Softshrink SpecialEntr SpecialErfcx SpecialI0E SpecialI1 SpecialLogNdtr SpecialNdtri SpecialXlog1Py Sqrt Square "
    "Sub Tan Tanh Threshold ToCopy Tril Triu Where Xlogy"
)
_REDUCED = (
    "Amax Amin Kthvalue LinalgVectorNorm Logsumexp Max Mean Median Min Mode Nanmean Nanmedian Nansum Norm Prod Std Sum Var "
    "Aminmax"
)
_ALONG = "Cummax Cummin Cumprod Cumsum FftC2C FftC2R FftR2C Glu LogSoftmax Logcumsumexp SafeSoftmax Softmax Renorm"
_ATTENTION = "CudnnAttention EfficientAttention FlashAttention FlashAttentionForCpu FusedAttentionOverrideable"
_OVER_LAST = {
    1: "AdaptiveMaxPool1D ReflectionPad1D ReplicationPad1D UpsampleLinear1D UpsampleNearest1D UpsampleNearestExact1D",
    2: "AdaptiveAvgPool2D AdaptiveMaxPool2D AvgPool2D FractionalMaxPool2D LinalgCholeskyEx LinalgEigh LinalgInvEx LinalgLuFactorEx "
    "LinalgMatrixExp LinalgQr LinalgSvd MaxPool2DWithIndices Mkldnn MkldnnAdaptiveAvgPool2D ReflectionPad2D ReplicationPad2D "
    "UpsampleBicubic2D UpsampleBilinear2D UpsampleBicubic2DAa UpsampleBilinear2DAa UpsampleNearest2D UpsampleNearestExact2D "
    "Im2Col Col2Im Cdist",
    3: "AdaptiveAvgPool3D AdaptiveMaxPool3D AvgPool3D GridSampler2D MaxPool3DWithIndices PixelShuffle PixelUnshuffle "
    "ChannelShuffle ReflectionPad3D ReplicationPad3D UpsampleNearest3D UpsampleNearestExact3D UpsampleTrilinear3D",
    4: "GridSampler3D",
}

RULES: dict[str, Rule] = (
    dict.fromkeys(_ELEMENTWISE.split(), broadcast)
    | dict.fromkeys(_REDUCED.split(), reduced)
    | dict.fromkeys(_ALONG.split(), along_dims("dim"))
    | {f"ScaledDotProduct{kind}": attention for kind in _ATTENTION.split()}
    | {name: over_last(n) for n, names in _OVER_LAST.items() for name in names.split()}
    | dict.fromkeys(
        ["View", "UnsafeView", "ReshapeAlias", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Unflatten"], reshaped
    )
    | dict.fromkeys(
        ["Slice", "Select", "Split", "SplitWithSizes", "UnsafeSplit", "UnsafeSplitWithSizes", "Unbind"], part
    )
    | dict.fromkeys(["Gather", "ScatterAdd", "Scatter", "ScatterReduce", "Sort", "Topk"], gathered)
    | dict.fromkeys(["IndexAdd", "IndexCopy", "IndexReduce"], index_added)
    | dict.fromkeys(["IndexPut", "IndexPutImpl"], index_put)
    | dict.fromkeys(["NativeLayerNorm", "FusedRmsNorm"], layer_norm)
    | dict.fromkeys(["NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm"], batch_norm)
    | dict.fromkeys(["Mm", "Bmm"], product)
    | dict.fromkeys(["Addmm", "Baddbmm"], sum_and_product)
    | dict.fromkeys(["ViewAsReal", "ViewAsComplex"], same_axis)
    | {
        "Cat": concatenated,
        "ConstantPadNd": padded,
        "Convolution": convolution,
        "Embedding": table,
        "Flip": along_dims("dims"),
        "Index": indexed,
        "IndexSelect": index_selected,
        "Linear": linear,
        "Mv": matrix_vector,
        "NativeGroupNorm": group_norm,
        "Permute": permuted,
        "Repeat": copies,
        "Roll": along_dims("dims"),
        "Stack": stacked,
        "T": flipped,
        "Transpose": transposed,
        "Unfold": windows,
    }
)
"""Name of a backward node, without ``Backward`` and its number -> rule."""

BY_DATA = {"Index", "IndexAdd", "IndexCopy", "IndexPut", "IndexPutImpl", "IndexReduce", "IndexSelect"}
"""Ops whose rule reads the values of index tensors: what it tells holds for one batch."""

MOVES_BY_SHAPE = {
    "AsStrided",
    "Cat",
    "ConstantPadNd",
    "Diagonal",
    "LinalgDiagonal",
    "Unfold",
    "Repeat",
    "View",
    "UnsafeView",
    "ReshapeAlias",
}
"""Ops that move entries by shapes and options alone: an experiment with them holds for every batch."""
