"""Rows of all processes, with gradients."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils import _pytree as pytree

from harmony.distributed.batch_split import BatchSplit, all_sum, gather_rows, split_batch

PyTree = Any


def gather(tree: PyTree, process_group: Any = None) -> PyTree:
    """Rows of all processes, in order of their rank, with gradients: global negatives for a contrastive loss.

    Every process then evaluates the same loss on the same rows. The gradient that comes back to a process's rows is the
    sum over what all processes sent them; where all of them evaluate the same mean over the whole batch, that is the
    number of processes times its gradient, which DistributedDataParallel, taking the mean, makes right.

    Args:
        tree: Tree of tensors with rows (b, ...) of this process; b may differ from process to process.
        process_group: The processes; None for the default group, or for this process alone where there is none.

    Returns:
        The tree with rows (B, ...).

    Raises:
        ValueError: Tensors with different numbers of rows, or without any axis.

    Examples:
        >>> harmony.distributed.gather({"video": torch.ones(2, 3)})["video"].shape  # a single process
        torch.Size([2, 3])

    References:
        Radford et al., CLIP, 2021 (arXiv:2103.00020), section 2.5, evaluates similarities over all processes.
    """
    leaves = pytree.tree_leaves(tree)
    sizes = {len(x) if isinstance(x, Tensor) and x.ndim else None for x in leaves}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(f"gather expects tensors with the same number of rows; got {[_shape(x) for x in leaves]}.")
    if process_group is None:
        if not (dist.is_available() and dist.is_initialized()):
            return tree
        process_group = dist.group.WORLD
    split = split_batch(len(leaves[0]), process_group)
    return pytree.tree_map(lambda x: _Gather.apply(x, split), tree)  # type: ignore[no-untyped-call]


class _Gather(torch.autograd.Function):
    """`gather` of one tensor, whose adjoint adds up what all processes send to the rows of each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, split: BatchSplit) -> Tensor:
        ctx.split = split
        return gather_rows(x, split)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        [total] = all_sum([grad], ctx.split.process_group)
        return total[ctx.split.own], None


def _shape(x: Any) -> Any:
    return tuple(x.shape) if isinstance(x, Tensor) else x
