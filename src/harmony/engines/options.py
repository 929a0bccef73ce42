"""The options of the machine: they change time and memory, never the numbers."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch

Method = Literal["auto", "tape", "vmap", "loop"]
Update = Literal["auto", "kept", "tape", "backward"]
Verify = Literal["auto", "always", "never"]


@dataclass(frozen=True)
class Engine:
    """How per-sample gradients are computed. All choices give the same numbers; [plan][harmony.plan] shows them.

    Attributes:
        method: ``"tape"``, the fast engine, reads the autograd graph of one ordinary forward pass; ``"vmap"`` is the
            definition on ``torch.func``; ``"loop"`` runs sample after sample. ``"auto"`` takes the first that can, and
            warns if that is not the first.
        update: Where the tape takes the weighted gradient from: ``"kept"``, the per-sample gradients that gave the
            Gram; ``"tape"``, the recorded ops; ``"backward"``, one ordinary backward pass; ``"auto"``, the cheapest.
        memory: Bytes for per-sample gradients, which are computed block by block; None for 256 MiB, or a sixteenth of
            the memory of a GPU.
        chunk_size: Samples that are encoded at a time; None for all. Bounds memory: the embeddings come first, then
            each chunk is encoded again with the same random numbers.
        verify: How often one more backward pass verifies that no gradient leaks from sample to sample: ``"auto"``, at
            the calls 1, 2, 4, 8, ... with each graph; ``"always"``; ``"never"``.

    Raises:
        ValueError: An unknown choice, or a size below 1.

    Examples:
        >>> harmony.Engine(chunk_size=8).method
        'auto'
    """

    method: Method = "auto"
    update: Update = "auto"
    memory: int | None = None
    chunk_size: int | None = None
    verify: Verify = "auto"

    def __post_init__(self) -> None:
        """Check the choices."""
        for name, choices in {"method": Method, "update": Update, "verify": Verify}.items():
            require_choice(name, getattr(self, name), get_args(choices))
        require_positive("memory", self.memory)
        require_positive("chunk_size", self.chunk_size)

    def bytes_on(self, device: torch.device) -> int:
        """The memory for per-sample gradients on a device."""
        if self.memory is not None:
            return self.memory
        return torch.cuda.get_device_properties(device).total_memory // 16 if device.type == "cuda" else 256 * 2**20


def require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise a ValueError for an unknown choice."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}.")


def require_positive(name: str, size: int | None) -> None:
    """Raise a ValueError for a size below 1; None is no size."""
    if size is not None and size < 1:
        raise ValueError(f"{name} must be at least 1; got {size}.")
