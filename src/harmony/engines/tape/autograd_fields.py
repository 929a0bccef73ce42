"""The private fields of torch's autograd graph that this engine reads. No other file names one."""

import functools
from collections.abc import Iterator, Sequence
from numbers import Number
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

from harmony.engines.precision import full_precision
from harmony.engines.tape.errors import UnsupportedError


def leaf(node: Node) -> Tensor | None:
    """The leaf tensor that a node stands for, if it is a leaf."""
    return getattr(node, "variable", None)


def shapes(node: Node) -> list[torch.Size]:
    """Shapes of the outputs of an op, or of a leaf."""
    variable = leaf(node)
    if variable is not None:
        return [variable.shape]
    try:
        return [torch.Size([int(n) for n in output.shape]) for output in _outputs(node)]
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise UnsupportedError(f"{node.name()} gives a nested tensor, whose shape is that of no array") from error


def dtypes(node: Node) -> list[torch.dtype]:
    """Dtypes of the outputs of an op, or of a leaf."""
    variable = leaf(node)
    return [variable.dtype] if variable is not None else [output.dtype for output in _outputs(node)]


def device(node: Node, number: int) -> torch.device:
    """Device of one output of an op."""
    kind: torch.device = _outputs(node)[number].device
    return kind


def is_complex(node: Node, number: int = 0) -> bool:
    """Whether an output of an op holds complex numbers."""
    return dtypes(node)[number].is_complex


def saved(node: Node, name: str) -> Any:
    """A tensor or an option that autograd has saved with an op; an AttributeError where this torch saves none."""
    return getattr(node, f"_saved_{name}")


def saved_or_none(node: Node, name: str) -> Any:
    """As ``saved``, or None where this torch saves none."""
    return getattr(node, f"_saved_{name}", None)


def signed(dim: int) -> int:
    """A dimension as it was given: autograd saves negative ones as large numbers."""
    return dim - 2**64 if dim >= 2**63 else dim


def dim(node: Node, name: str, ndim: int) -> int:
    """A saved dimension, counted from the front."""
    return signed(saved(node, name)) % max(ndim, 1)


def options(node: Node) -> tuple[Any, ...]:
    """What an op has saved besides tensors: dimensions, sizes, scales."""
    if isinstance(node, BackwardCFunction):  # a custom function: the numbers and names it keeps in its context
        return type(node), *((n, v) for n, v in vars(node).items() if isinstance(v, int | float | str | tuple | list))
    return tuple(getattr(node, name) for name in _option_names(type(node)))


def is_custom(node: Node) -> bool:
    """Whether an op is an ``autograd.Function`` written in Python."""
    return isinstance(node, BackwardCFunction)


def run_backward(node: Node, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Call the backward of one op outside of a pass: a gradient for each of its differentiable inputs."""
    with torch.no_grad():
        if not isinstance(node, BackwardCFunction):
            results: Any = node(*grads)  # type: ignore[operator]
            return list(results) if isinstance(results, tuple) else [results]
        template = next(g for g in grads if g is not None)
        filled = [template.new_zeros(s) if g is None else g for g, s in zip(grads, shapes(node), strict=True)]
        results = node.apply(*filled)
    results = iter(results if isinstance(results, tuple) else (results,))
    # It gives a gradient for each argument, tensor or not.
    needed = [result for result, needs in zip(results, node.needs_input_grad, strict=False) if needs]
    remaining = iter(needed)
    return [None if source is None else next(remaining) for source, _ in node.next_functions]


def require_fields() -> None:
    """Raise an UnsupportedError where this torch keeps its graph in another way than this file expects."""
    missing = missing_fields()
    if missing:
        raise UnsupportedError(
            f"torch {torch.__version__} keeps its autograd graph in another way than this engine knows: expected "
            f'{", ".join(missing)}. Please report it; method="vmap" works without the graph'
        )


@functools.cache
def missing_fields() -> tuple[str, ...]:
    """The fields that a tiny graph does not have, or has with other types; looked at once."""
    missing = []
    for node in _tiny_graph():
        name = node.name()
        for field, kind in _EXPECTED.get(name, {"": None}).items():
            if kind is None or not isinstance(getattr(node, f"_saved_{field}", None), kind):
                missing.append(f"{name}._saved_{field}")
        outputs = getattr(node, "_input_metadata", [None])
        kinds = [(getattr(outputs[0], field, None), kind) for field, kind in _EXPECTED_OF_OUTPUTS.items()]
        if not all(isinstance(value, kind) for value, kind in kinds):
            missing.append(f"{name}._input_metadata")
        if not all(source is None or isinstance(leaf(source), Tensor) for source, _ in node.next_functions):
            missing.append("AccumulateGrad.variable")
        if any(isinstance(option, Tensor) for option in options(node)):
            missing.append(f"{name}._raw_saved_*")
    return tuple(dict.fromkeys(missing))


def _tiny_graph() -> Iterator[Node]:
    def ones(*shape: int) -> Tensor:
        return torch.ones(shape, device="cpu", requires_grad=True)

    with torch.enable_grad(), full_precision("cpu"):
        outputs = [
            torch.addmm(ones(2), ones(2, 2), ones(2, 2)),
            torch.mm(ones(2, 2), ones(2, 2)),
            F.layer_norm(ones(2, 2), (2,), ones(2), ones(2)),
            F.embedding(torch.zeros(2, dtype=torch.int64, device="cpu"), ones(2, 2)),
            F.conv1d(ones(1, 1, 2), ones(1, 1, 1), ones(1)),
            ones(2) * ones(2),
        ]
    return (output.grad_fn for output in outputs if output.grad_fn is not None)


_EXPECTED_OF_OUTPUTS: dict[str, Any] = {"shape": (list, tuple), "dtype": torch.dtype, "device": torch.device}
_EXPECTED: dict[str, dict[str, Any]] = {
    "AddmmBackward0": {"mat1": Tensor, "mat2": Tensor, "alpha": Number, "beta": Number},
    "MmBackward0": {"self": Tensor, "mat2": Tensor},
    "NativeLayerNormBackward0": {"input": Tensor, "result1": Tensor, "result2": Tensor, "normalized_shape": tuple},
    "EmbeddingBackward0": {"indices": Tensor, "padding_idx": int, "scale_grad_by_freq": bool},
    "ConvolutionBackward0": {"input": Tensor, "transposed": bool, "groups": int}
    | dict.fromkeys(["stride", "padding", "dilation"], tuple),
    "MulBackward0": {"self": Tensor, "other": Tensor},
}


def _outputs(node: Node) -> Any:
    return node._input_metadata


@functools.cache
def _option_names(kind: type) -> tuple[str, ...]:
    names = dir(kind)
    return tuple(n for n in names if n.startswith("_saved_") and f"_raw{n}" not in names)
