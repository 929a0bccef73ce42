"""Modes in which embeddings of the same sample can be compared: without half precision, and without dropout."""

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from harmony.engines.precision import full_precision

_HALF = (torch.float16, torch.bfloat16)
_DROPOUT = {
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout),
    *(torch.dropout, torch.alpha_dropout, torch.feature_dropout, torch.feature_alpha_dropout),
}
_RECURRENT = {torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu}
_RATE_POSITION = {F.scaled_dot_product_attention: 4, F.multi_head_attention_forward: 10} | dict.fromkeys(_RECURRENT, 5)
"""Functions that drop within, and which of their arguments is the rate; one further on for packed sequences."""


class FullPrecision(TorchFunctionMode):
    """Inside, nothing is computed below float32: neither by autocast, nor by tensors and casts in half precision."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = Tensor.float if func in (Tensor.half, Tensor.bfloat16) else func
        args, kwargs = pytree.tree_map(_lifted, (args, kwargs or {}))
        with contextlib.ExitStack() as stack:
            for device in {x.device.type for x in pytree.tree_leaves(args) if isinstance(x, Tensor)}:
                stack.enter_context(full_precision(device))
            return func(*args, **kwargs)


def _lifted(x: Any) -> Any:
    """A tensor, or a dtype, in float32 where it is in half precision."""
    if isinstance(x, Tensor):
        return x.float() if x.dtype in _HALF else x
    return torch.float32 if x in _HALF else x


class NoDropout(TorchFunctionMode):
    """Inside, nothing is dropped."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _DROPOUT:
            return args[0] if args else kwargs["input"]
        position = _RATE_POSITION.get(func)
        if position is not None:
            if "dropout_p" in kwargs:
                kwargs = kwargs | {"dropout_p": 0.0}
            packed = len(args) > 1 and isinstance(args[1], Tensor) and args[1].dtype == torch.int64
            position += packed and func in _RECURRENT
            args = [0.0 if n == position else x for n, x in enumerate(args)]
        return func(*args, **kwargs)
