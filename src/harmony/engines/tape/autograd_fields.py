"""The private fields of torch's autograd graph that this engine reads. No other file names one."""

import functools
from collections.abc import Sequence
from numbers import Number
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

from harmony.engines.errors import UnsupportedError
from harmony.engines.precision import full_precision


def leaf(node: Node) -> Tensor | None:
    """The leaf tensor that a node stands for, if it is a leaf."""
    return getattr(node, "variable", None)


def shapes_and_dtypes(node: Node) -> tuple[list[torch.Size], list[torch.dtype]]:
    """Shapes and dtypes of the outputs of an op, or of a leaf."""
    variable = leaf(node)
    if variable is not None:
        return [variable.shape], [variable.dtype]
    outputs = node._input_metadata
    try:
        return [torch.Size([int(n) for n in output.shape]) for output in outputs], [output.dtype for output in outputs]
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise UnsupportedError(f"{node.name()} gives a nested tensor, whose shape is that of no array") from error


def dtypes(node: Node) -> list[torch.dtype]:
    """Dtypes of the outputs of an op, or of a leaf."""
    variable = leaf(node)
    return [variable.dtype] if variable is not None else [output.dtype for output in node._input_metadata]


def device(node: Node, number: int = 0) -> torch.device:
    device: torch.device = node._input_metadata[number].device
    return device


def saved(node: Node, name: str) -> Any:
    """A tensor or an option that autograd has saved with an op; an AttributeError where this torch saves none."""
    return getattr(node, f"saved_{name}" if is_custom(node) else f"_saved_{name}")


def saved_or_none(node: Node, name: str) -> Any:
    """As ``saved``, or None where this torch saves none."""
    return getattr(node, f"_saved_{name}", None)


def recomputed(node: Node) -> dict[str, int]:
    """The saved tensors that activation checkpointing computes again, by name: each with the number of its region."""
    regions = {}
    for name in ("_raw_saved_tensors",) if is_custom(node) else _raw_names(type(node)):
        raw = getattr(node, name)
        for tensor in raw if isinstance(raw, tuple) else (raw,):
            hook = getattr(tensor, "unpack_hook", None)  # each call of a checkpointed function has its own
            if hook is not None and getattr(hook, "__module__", "") == "torch.utils.checkpoint":
                regions[name.removeprefix("_raw_saved_")] = id(hook)
    return regions


@functools.cache
def _raw_names(kind: type) -> tuple[str, ...]:
    return tuple(name for name in dir(kind) if name.startswith("_raw_saved_"))


def signed(dim: int) -> int:
    """A dimension as it was given: autograd saves negative ones as large numbers."""
    return dim - 2**64 if dim >= 2**63 else dim


def dim(node: Node, name: str, ndim: int) -> int:
    """A saved dimension, counted from the front."""
    return signed(saved(node, name)) % max(ndim, 1)


def is_custom(node: Node) -> bool:
    """Whether an op is an ``autograd.Function`` written in Python."""
    return isinstance(node, BackwardCFunction)


def options(node: Node) -> tuple[Any, ...]:
    """What an op has saved besides tensors: dimensions, sizes, scales; of a custom function, what its context keeps."""
    if is_custom(node):
        return type(node), *((n, v) for n, v in vars(node).items() if isinstance(v, int | float | str | tuple | list))
    return tuple(getattr(node, name) for name in _option_names(type(node)))


@functools.cache
def _option_names(kind: type) -> tuple[str, ...]:
    names = dir(kind)
    return tuple(n for n in names if n.startswith("_saved_") and f"_raw{n}" not in names)


def run_backward(node: Node, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Call the backward of one op outside of a pass: a gradient for each of its differentiable inputs."""
    call: Any = node
    if is_custom(node):
        template = next(g for g in grads if g is not None)
        grads = [
            template.new_zeros(s) if g is None else g for g, s in zip(grads, shapes_and_dtypes(node)[0], strict=True)
        ]
        call = node.apply  # type: ignore[attr-defined]
    with torch.no_grad():
        results = call(*grads)
    results = results if isinstance(results, tuple) else (results,)
    if is_custom(node):  # it gives a gradient for each argument, tensor or not
        needed = iter([r for r, needs in zip(results, node.needs_input_grad, strict=False) if needs])  # type: ignore[attr-defined]
        results = [None if source is None else next(needed) for source, _ in node.next_functions]
    return list(results)


def require_fields() -> None:
    """Raise an UnsupportedError where this torch keeps its graph in another way than this file expects."""
    missing = missing_fields()
    if missing:
        raise UnsupportedError(
            f"torch {torch.__version__} keeps its autograd graph in another way than this engine knows: expected "
            f'{", ".join(missing)}. Please report it; engine=harmony.Engine(method="vmap") works without the graph'
        )


@functools.cache
def missing_fields() -> tuple[str, ...]:
    """The fields that a tiny graph does not have, or has with other types; looked at once."""
    missing = []
    for name, (output, expected) in _tiny_graph().items():
        node = output.grad_fn
        assert node is not None
        if node.name() != name:
            missing.append(name)
        for field, kind in expected.items():
            if not isinstance(saved_or_none(node, field), kind):
                missing.append(f"{name}._saved_{field}")
        for field, kind in {"shape": list | tuple, "dtype": torch.dtype, "device": torch.device}.items():
            if not isinstance(getattr(getattr(node, "_input_metadata", [None])[0], field, None), kind):
                missing.append(f"{name}._input_metadata.{field}")
        if not all(source is None or isinstance(leaf(source), Tensor) for source, _ in node.next_functions):
            missing.append("AccumulateGrad.variable")
        if any(isinstance(option, Tensor) for option in options(node)):
            missing.append(f"{name}._raw_saved_*")
    return tuple(dict.fromkeys(missing))


def _tiny_graph() -> dict[str, tuple[Tensor, dict[str, Any]]]:
    """Ops by the name of their node: an output, and what the op is expected to save."""

    def ones(*shape: int) -> Tensor:
        return torch.ones(shape, device="cpu", requires_grad=True)

    with torch.enable_grad(), full_precision("cpu"):
        rows, indices = ones(2, 2), torch.zeros(2, dtype=torch.int64, device="cpu")
        sum_of_product = torch.addmm(ones(2), rows, ones(2, 2))
        normalized = F.layer_norm(rows, (2,), ones(2), ones(2))
        convolved = F.conv1d(ones(1, 1, 2), ones(1, 1, 1), ones(1))
        sizes = dict.fromkeys(["stride", "padding", "dilation"], tuple)
        return {
            "AddmmBackward0": (sum_of_product, {"mat1": Tensor, "mat2": Tensor, "alpha": Number, "beta": Number}),
            "MmBackward0": (rows @ rows, {"self": Tensor, "mat2": Tensor}),
            "NativeLayerNormBackward0": (normalized, dict.fromkeys(["input", "result1", "result2"], Tensor)),
            "EmbeddingBackward0": (F.embedding(indices, rows), {"indices": Tensor, "padding_idx": int}),
            "ConvolutionBackward0": (convolved, sizes | {"input": Tensor, "transposed": bool, "groups": int}),
            "MulBackward0": (rows * rows, {"self": Tensor, "other": Tensor}),
        }
