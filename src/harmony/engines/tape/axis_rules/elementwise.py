"""Ops that broadcast, and ops that copy."""

from harmony.engines.tape.axis_rules.op import Op
from harmony.engines.tape.layout import Mark, State, aligned, on_axis, place_of_rows


def broadcast(op: Op) -> State:
    """The input is aligned with the output from the last axis on."""
    return aligned(op.place, op.shape, op.input)


def copies(op: Op) -> State | None:
    """``repeat``: tiles side by side, along any axis."""
    axis = op.place.axis - (len(op.shape) - len(op.input))
    if axis < 0:
        return Mark.COMMON
    if op.shape[op.place.axis] == op.input[axis]:
        return on_axis(op.place, axis)
    tiles = op.ids.view(-1, op.input[axis])
    return place_of_rows(axis, tiles[0], op.size) if bool((tiles == tiles[0]).all()) else Mark.COMMON


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
