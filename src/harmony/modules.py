"""Modules in place of pure functions: run on their own parameters, with state and hooks that are left as they were."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from harmony.distributed.sharded import unwrapped, without_fsdp_hooks
from harmony.warn import warn

Params = Mapping[str, Tensor]


class Buffer(NamedTuple):
    """A copy of a module's buffer, and the version of the buffer that was copied."""

    module: nn.Module
    name: str
    tensor: Tensor
    version: int
    value: Tensor


class ModuleFunction:
    """A pure function ``f(params, x)`` made of a module.

    Given the module's own parameters, it calls the module as it is: layers that run themselves again in the backward
    pass then find the parameters that are differentiated. Given others, they take the place of its own while it runs.
    """

    def __init__(self, module: nn.Module, call: Callable[[Any], Any], where: str, remedy: str) -> None:
        """Wrap a module.

        Args:
            module: Owns the parameters.
            call: Runs it on its input.
            where: Its name in errors.
            remedy: What to do with a parameter that it uses and does not own.
        """
        self.module = module
        self.call = call
        self.where = where
        self.remedy = remedy
        self.params = {name: p for name, p in module.named_parameters() if p.requires_grad}

    def __call__(self, params: Params, x: Any) -> Any:
        """Run the module with some parameters."""
        if all(params[name] is p for name, p in self.params.items()):
            return self.call(x)
        with _NoStrayParameters(self), without_fsdp_hooks(self.module), _substituted(self.module, self.params, params):
            return self.call(x)

    def owns(self, params: Iterable[Tensor]) -> bool:
        """Whether tensors are the module's own parameters, in the order of their names."""
        return [id(p) for p in params] == [id(p) for p in self.params.values()]

    def require_own(self, leaf: Tensor) -> None:
        """Raise a ValueError: a tensor that requires a gradient is none of the module's parameters."""
        raise ValueError(
            f"{self.where} uses a trainable parameter of shape {tuple(leaf.shape)} that this step would not train: "
            f"{self.remedy}, or freeze it with requires_grad_(False)."
        )

    def buffers(self, before: Sequence[Buffer] = ()) -> list[Buffer]:
        """The values of all buffers, copied where they have changed since ``before``."""
        known = {(id(b.tensor), b.version): b.value for b in before}
        result = []
        for module in self.module.modules():
            for name, tensor in module._buffers.items():
                if tensor is not None:
                    version = 0 if tensor.is_inference() else tensor._version
                    value = known.get((id(tensor), version))
                    result.append(Buffer(module, name, tensor, version, tensor.clone() if value is None else value))
        return result

    @contextlib.contextmanager
    def replaying(self, buffers: Sequence[Buffer]) -> Iterator[None]:
        """Inside, the buffers have earlier values; outside, what happened to them is forgotten."""
        current = [(b, b.module._buffers[b.name]) for b in buffers]
        for b in buffers:
            b.module._buffers[b.name] = b.value.clone()
        try:
            yield
        finally:
            for b, tensor in current:
                b.module._buffers[b.name] = tensor


def unwrap(module: nn.Module) -> tuple[nn.Module, Any]:
    """The module behind compilation and data parallelism, and the processes that it is wrapped or sharded for."""
    if any("_orig_mod" in m._modules or m._compiled_call_impl is not None for m in module.modules()):
        warn(
            "the module is compiled: harmonized steps run it eagerly, since the graph of compiled code can be walked "
            "only once. Passes without harmony stay compiled."
        )
    inner, processes = unwrapped(getattr(module, "_orig_mod", module))
    return getattr(inner, "_orig_mod", inner), processes


@contextlib.contextmanager
def _substituted(module: nn.Module, own: Params, params: Params) -> Iterator[None]:
    """Inside, other tensors stand in the places of a module's parameters, wherever it uses them."""
    names = {id(p): name for name, p in own.items()}
    slots = [(m, slot, p) for m in module.modules() for slot, p in m._parameters.items() if id(p) in names]
    recurrent = [(m, m._flat_weights) for m in module.modules() if isinstance(m, nn.RNNBase)]
    try:
        for m, slot, p in slots:
            m._parameters[slot] = params[names[id(p)]]  # type: ignore[assignment]
        for m, _ in recurrent:
            m._flat_weights = [getattr(m, name, None) for name in m._flat_weights_names]
        yield
    finally:
        for m, slot, p in slots:
            m._parameters[slot] = p
        for m, weights in recurrent:
            m._flat_weights = weights


@contextlib.contextmanager
def suspended_hooks(*functions: ModuleFunction) -> Iterator[None]:
    """Inside, hooks on parameters do not see the engine's backward passes; ``accumulate`` calls them once."""
    params = [p for function in functions for p in function.params.values()]
    suspended = [(hooks, dict(hooks)) for p in params if (hooks := p._backward_hooks)]
    for hooks, _ in suspended:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, saved in suspended:
            hooks.update(saved)


def accumulate(params: Params, grads: Params) -> None:
    """Add gradients to ``.grad`` as an ordinary backward pass does, hooks included."""
    with torch.no_grad():
        for name, p in params.items():
            grad = grads[name].detach()
            for hook in list((p._backward_hooks or {}).values()):
                replaced = hook(grad)
                grad = grad if replaced is None else replaced
            if p.grad is None:
                p.grad = grad.clone()
            else:
                p.grad += grad
            for hook in list((p._post_accumulate_grad_hooks or {}).values()):
                hook(p)


class _NoStrayParameters(TorchFunctionMode):
    """Refuse trainable parameters that a function uses and does not own, where no graph would show them.

    Its own parameters are plain tensors inside: whatever is still a trainable ``nn.Parameter`` was closed over.
    """

    def __init__(self, function: ModuleFunction) -> None:
        super().__init__()
        self.function = function

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.__name__ != "__get__":  # not x.shape
            for x in pytree.tree_leaves((args, kwargs)):
                if isinstance(x, nn.Parameter) and x.requires_grad:
                    self.function.require_own(x)
        return func(*args, **kwargs)
