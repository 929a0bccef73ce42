"""Sums of squares in at least float32, whatever the precision of the model."""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def inner_products(grads: Sequence[Sequence[Tensor]]) -> Tensor:
    """Gram blocks (groups, K, K) of K lists of gradients with leaves (groups, *shape), in at least float32."""
    total: Tensor | None = None
    with full_precision(grads[0][0].device.type):
        for leaves in zip(*grads, strict=True):
            rows = torch.stack([entries(leaf) for leaf in leaves], dim=1)
            product = rows @ rows.mT
            total = product if total is None else total + product
    assert total is not None
    return total


def full_precision(device: str) -> contextlib.AbstractContextManager[Any]:
    """Inside, autocast does not lower the precision of matrix products."""
    return (
        torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else contextlib.nullcontext()
    )


def accumulating(x: Tensor) -> Tensor:
    """Half precision is too coarse for sums of squares: raise it to float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def entries(x: Tensor) -> Tensor:
    """Real entries (n, p) of gradients (n, *shape), in at least float32; complex numbers are pairs of real ones."""
    x = torch.view_as_real(x.resolve_conj()) if x.is_complex() else accumulating(x)
    return x.reshape(len(x), -1)
