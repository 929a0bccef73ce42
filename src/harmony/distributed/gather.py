"""Rows of all processes, with gradients."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from harmony.distributed.shares import Shares, gathered, shares, summed


def gather(x: Tensor, process_group: Any = None) -> Tensor:
    """Rows of all processes, in order of their rank, with gradients: global negatives for a contrastive loss.

    Every process then evaluates the same loss on the same rows. The gradient that comes back to a process's rows is the
    sum over what all processes sent them; where all of them evaluate the same mean over the whole batch, that is the
    number of processes times its gradient, which DistributedDataParallel, taking the mean, makes right.

    Args:
        x: Rows (b, ...) of this process; b may differ from process to process.
        process_group: The processes; None for the default group, or for this process alone where there is none.

    Returns:
        Rows (B, ...).

    Examples:
        >>> import torch, harmony
        >>> harmony.distributed.gather(torch.ones(2, 3)).shape  # a single process
        torch.Size([2, 3])

    References:
        Radford et al., CLIP, 2021 (arXiv:2103.00020), section 2.5, evaluates similarities over all processes.
    """
    if process_group is None:
        if not (dist.is_available() and dist.is_initialized()):
            return x
        process_group = dist.group.WORLD
    rows: Tensor = _Gather.apply(x, shares(len(x), process_group))  # type: ignore[no-untyped-call]
    return rows


class _Gather(torch.autograd.Function):
    """`gather`, whose adjoint adds up what all processes send to the rows of each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shared: Shares) -> Tensor:
        ctx.shared = shared
        return gathered(x, shared)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        [total] = summed([grad], ctx.shared.process_group)
        return total[ctx.shared.own], None
