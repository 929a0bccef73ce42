"""An architecture as the engines take it: encode, losses, parameters, batch; and the module itself, run as it is."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

import harmony
from tests.harmony.third_party.architecture import Builder


class Exact(TorchFunctionMode):
    """Inside, casts to float32 give float64: many models compute softmax and RMS norm in float32, whatever comes in."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is Tensor.float:
            return args[0].double()
        args = [torch.float64 if x is torch.float32 else x for x in args]
        kwargs = {k: torch.float64 if x is torch.float32 else x for k, x in (kwargs or {}).items()}
        return function(*args, **kwargs)


class Case(NamedTuple):
    """What the engines take, and what they must agree with.

    Attributes:
        encode: ``encode(params, batch)`` -> embeddings (B, D).
        losses: ``losses(embeddings)`` -> {name: (B,)}.
        params: Those parameters of the module that are trained, by name; the module holds the same values.
        batch: Tensors whose first axis is the sample.
        module: The module, on its own parameters.
        forward: ``forward(module, batch)`` -> embeddings (B, D), by the module or a copy of it.
    """

    encode: Callable[[dict[str, Tensor], Any], Tensor]
    losses: Callable[[Tensor], dict[str, Tensor]]
    params: dict[str, Tensor]
    batch: Any
    module: nn.Module
    forward: Callable[[nn.Module, Any], Tensor]

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Of ``gram_vjp``."""
        return self[:4]


def losses(f: Tensor) -> dict[str, Tensor]:
    """Two losses on one embedding, one of them with in-batch negatives."""
    left, right = f.chunk(2, dim=1)
    return {
        "contrast": harmony.losses.info_nce(left, right, temperature=0.5, symmetric=True),
        "norm": F.softplus(f).pow(2).mean(1),
    }


def cast(tree: Any, dtype: torch.dtype) -> Any:
    """Floating-point tensors in another precision."""
    return pytree.tree_map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, tree)


def without_dropout(module: nn.Module) -> None:
    """Switch off what no argument of the class does: a sample alone would draw other masks than in its batch."""
    for layer in module.modules():
        for name in ("p", "drop_prob", "dropout_prob"):
            if isinstance(getattr(layer, name, None), float):
                setattr(layer, name, 0.0)


def case(build: Builder, *, train: bool, dtype: torch.dtype, dropout: bool = False) -> Case:
    """Build an architecture and take it as a function of those parameters that are trained.

    No parameter stays at a one or a zero: a branch behind one would have no gradient. The values are those of float32
    in every precision.
    """
    torch.manual_seed(0)
    module, batch, pool, shared = build()
    module.to(torch.float32).train(train)
    if not dropout:
        without_dropout(module)
    trained = {n: w for n, w in module.named_parameters() if w.requires_grad}
    with torch.no_grad():
        for w in trained.values():
            w += 0.1 * torch.randn_like(w)
    module.to(dtype)
    batch, shared = cast(cast((batch, shared), torch.float32), dtype)

    def arguments(x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return ((), x | shared) if isinstance(x, dict) else (tuple(x), shared)

    def precision() -> Any:
        return Exact() if dtype == torch.float64 else nullcontext()

    def encode(params: dict[str, Tensor], x: Any) -> Tensor:
        with precision():
            return pool(functional_call(module, params, *arguments(x)))

    def forward(itself: nn.Module, x: Any) -> Tensor:
        args, kwargs = arguments(x)
        with precision():
            return pool(itself(*args, **kwargs))

    params = {n: w.detach() for n, w in module.named_parameters() if n in trained}
    return Case(encode, losses, params, batch, module, forward)
