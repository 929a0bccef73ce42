"""Ops that broadcast, and ops that copy."""

from harmony.engines.tape.axis_rules.op import Claims, Mark, Op
from harmony.engines.tape.axis_rules.places import aligned, at
from harmony.engines.tape.layout import place_of, row_ids


def broadcast(op: Op) -> Claims:
    """Every input is aligned with the output from the last axis on."""
    return [None if shape is None else aligned(op.place, op.shape, shape) for shape in op.inputs]


def copies(op: Op) -> Claims:
    """``repeat``: tiles side by side, along any axis."""
    shape = op.input
    place, output = op.place, op.shape
    axis = place.axis - (len(output) - len(shape))
    if axis < 0:
        return [Mark.COMMON]
    if output[place.axis] == shape[axis]:
        return [at(place, axis)]
    tiles = row_ids(place, output[place.axis], op.size).view(-1, shape[axis])
    return [place_of(axis, tiles[0], op.size) if bool((tiles == tiles[0]).all()) else Mark.COMMON]


_NAMES = (
    "Abs Acos Acosh Add Addcdiv Addcmul Alias Angle Asin Asinh Atan Atan2 Atanh Celu Clamp ClampMax ClampMin Clone "
    "Complex Conj ConjPhysical Copy Copysign Cos Cosh Deg2Rad Detach Digamma Div Elu Erf Erfc Erfinv Exp Exp2 Expand "
    "Expm1 Fmax Fmin Fmod Frac FusedDropout Gelu Hardshrink Hardsigmoid Hardswish Hardtanh Hypot I0 LeakyRelu Lerp "
    "Lgamma Log Log10 Log1p Log2 LogSigmoid Logaddexp Logaddexp2 Logit MaskedFill Maximum Minimum Mish Mul NanToNum "
    "NativeDropout Neg Polar Polygamma Pow PreluKernel Rad2Deg Reciprocal Relu Remainder ResolveConj ResolveNeg "
    "RreluWithNoise Rsqrt Rsub Sgn Sigmoid Sign Silu Sin Sinc Sinh Softplus Softshrink SpecialEntr SpecialErfcx "
    "SpecialI0E SpecialI1 SpecialLogNdtr SpecialNdtri SpecialXlog1Py Sqrt Square Sub Tan Tanh Threshold ToCopy Tril "
    "Triu Where Xlogy"
)
RULES = {"Repeat": copies} | dict.fromkeys(_NAMES.split(), broadcast)
