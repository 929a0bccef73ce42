"""What a list of architectures is made of: a module, a batch, and how the output becomes embeddings."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

B = 3


class Architecture(NamedTuple):
    """A module, and a batch of B samples.

    Attributes:
        module: An unchanged class of a package, small, with random weights.
        batch: Its arguments, tensors whose first axis is the sample: by name, or by position.
        pool: The embeddings (B, D) of its output.
        shared: Arguments by name that all samples share.
    """

    module: nn.Module
    batch: dict[str, Tensor] | tuple[Tensor, ...]
    pool: Callable[[Any], Tensor]
    shared: Mapping[str, Any] = MappingProxyType({})


Builder = Callable[[], Architecture]


def vector(output: Any) -> Tensor:
    """The output itself."""
    return output


def tokens(output: Any) -> Tensor:
    """Token mean of (B, T, D), squashed first, so that the gradient differs from token to token."""
    return output.tanh().mean(1)


def maps(output: Any) -> Tensor:
    """As ``tokens``, of feature maps (B, C, ...)."""
    return output.tanh().flatten(2).mean(2)


def halves(output: Tensor) -> Tensor:
    """As ``maps``, for few channels: the first and the second half of the places by themselves."""
    return torch.cat([part.mean(2) for part in output.tanh().flatten(2).chunk(2, dim=2)], dim=1)


def of(field: str | int, pool: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
    """Pool one field of the output."""
    return lambda output: pool(output[field] if isinstance(field, int) else getattr(output, field))


def normal(*shape: int) -> Tensor:
    """B samples of this shape."""
    return torch.randn(B, *shape, dtype=torch.float64)


def whole(high: int, *shape: int, low: int = 0) -> Tensor:
    """B samples of whole numbers, of this shape."""
    return torch.randint(low, high, (B, *shape))


def words(vocabulary: int, length: int) -> dict[str, Tensor]:
    """Texts of different lengths, padded with zeros."""
    mask = torch.arange(length) < torch.tensor([[length - 1], [2], [length]])
    return {"input_ids": whole(vocabulary, length, low=1) * mask, "attention_mask": mask.long()}
