"""Parameters that are spread over processes, and modules that are wrapped for several."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn


def is_sharded(p: Tensor) -> bool:
    """Whether a parameter is spread over processes (a ``DTensor``, as ``fully_shard`` makes them)."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(p, DTensor)


def whole(p: Tensor, process_group: Any) -> Tensor:
    """A parameter that is spread over processes, put together; another as it is.

    Raises:
        ValueError: It is spread over other processes than those that share the batch.
    """
    if not is_sharded(p):
        return p
    spread: Any = p
    processes = 1 if process_group is None else dist.get_world_size(process_group)
    if spread.device_mesh.size() != processes:
        raise ValueError(
            f"a parameter of shape {tuple(p.shape)} is sharded over {spread.device_mesh.size()} processes, and the "
            f"batch is shared among {processes}: pass the process_group of all that hold a part of both."
        )
    full: Tensor = spread.full_tensor()
    return full


def scatter(grad: Tensor, like: Any) -> Tensor:
    """The sum of the processes' gradients, of which each keeps the part that it keeps of the parameter."""
    from torch.distributed.tensor import DTensor, Partial

    mesh = like.device_mesh
    partial = DTensor.from_local(grad.to(like.dtype), mesh, [Partial()] * mesh.ndim, run_check=False)
    shard: Tensor = partial.redistribute(placements=like.placements)
    return shard


def unwrapped(module: nn.Module) -> tuple[nn.Module, Any]:
    """The module that parameters belong to, and the processes that it is wrapped or sharded for (None: this one)."""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return module.module, module.process_group
    for p in module.parameters():
        if is_sharded(p):
            mesh: Any = p.device_mesh  # type: ignore[attr-defined]
            return module, mesh.get_group() if mesh.ndim == 1 else dist.group.WORLD
    return module, None


@contextlib.contextmanager
def without_fsdp_hooks(module: nn.Module) -> Iterator[None]:
    """Inside, what ``fully_shard`` does before and after a forward pass is left out: the parameters are whole already.

    Its hooks would put parameters of their own in the place of those that are differentiated.
    """
    kept: list[tuple[Any, dict[int, Any]]] = []
    for m in module.modules():
        for hooks in (m._forward_pre_hooks, m._forward_hooks):
            if any(_of_fsdp(hook) for hook in hooks.values()):
                kept.append((hooks, dict(hooks)))
                for key in [key for key, hook in hooks.items() if _of_fsdp(hook)]:
                    del hooks[key]
    try:
        yield
    finally:
        for hooks, before in kept:
            hooks.clear()
            hooks.update(before)


def _of_fsdp(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("torch.distributed.fsdp.")
