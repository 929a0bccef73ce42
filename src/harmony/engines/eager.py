"""Compiled code is run eagerly where gradients are read off its graph, which could be gone through but once."""

import contextlib
import sys
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def eagerly() -> Iterator[None]:
    """Inside, what was compiled runs as it was written; also a decorator.

    Backward passes need it as well: activation checkpointing runs its function again there.
    """
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and loading the compiler takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
