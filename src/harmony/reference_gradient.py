"""The gradient that those of single samples are compared with: one that is given, or that of the batch."""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from harmony.distributed.sharded import whole
from harmony.engines.call import EncoderCall, leaf_names
from harmony.engines.precision import accumulating

PyTree = Any


def given_gradient(gradient: PyTree, call: EncoderCall, process_group: Any = None) -> list[Tensor]:
    """A gradient that the user gives, as one tensor for each parameter of a call.

    Args:
        gradient: {name: tensor} or the tree of the parameters; None for zeros. Parameters without a Gram may be left
            out, and are not looked at.
        call: The call.
        process_group: Processes that hold parts of sharded tensors.

    Returns:
        Tensors shaped like the parameters; zeros for those without a Gram.

    Raises:
        ValueError: A name is unknown or missing, or a tensor has another shape or device than its parameter.
        TypeError: An entry is no tensor.
    """
    given = dict(zip(leaf_names(gradient), pytree.tree_leaves(gradient), strict=True))
    unknown = [name for name in given if name not in call.names]
    missing = [name for name, selected in zip(call.names, call.selected, strict=True) if selected and name not in given]
    if unknown or missing:
        faults = [f"{what} {', '.join(names)}" for what, names in (("lacks", missing), ("has", unknown)) if names]
        raise ValueError(
            f"products_with needs a tensor for every parameter of the Gram, by its name; it {', and '.join(faults)}. "
            f"Names of the parameters: {_shortened(call.names)}. Let wrt select the others, or give zeros."
        )
    return [
        _checked(name, given[name], p, process_group) if selected else _zeros(p)
        for name, p, selected in zip(call.names, call.params, call.selected, strict=True)
    ]


def squared_norms(direction: list[Tensor], label: list[int]) -> Tensor:
    """Squared norms (L,) of one gradient over the parameters of each label."""
    squares = [
        torch.stack([accumulating(v).square().sum() for v, number in zip(direction, label, strict=True) if number == l])
        for l in range(max(label) + 1)
    ]
    return torch.stack([parts.sum() for parts in squares])


def _checked(name: str, given: Any, p: Tensor, process_group: Any) -> Tensor:
    if given is None:
        return _zeros(p)
    if not isinstance(given, Tensor):
        raise TypeError(f"products_with[{name!r}] must be a tensor or None; got {type(given).__name__}.")
    full = whole(given.detach(), process_group)
    if full.shape != p.shape or full.device != p.device:
        raise ValueError(
            f"products_with[{name!r}] must have the shape of the parameter, {tuple(p.shape)}, and its device, "
            f"{p.device}; got {tuple(full.shape)} on {full.device}."
        )
    return full.to(torch.promote_types(p.dtype, torch.float32))


def _zeros(p: Tensor) -> Tensor:
    return p.new_zeros(()).expand(p.shape)


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:5]) + ", ..." * (len(names) > 5)
