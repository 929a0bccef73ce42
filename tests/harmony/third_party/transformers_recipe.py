"""What the lists of transformers share: a class with its configuration, and the sizes of small ones."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import transformers as t
from torch import Tensor, nn

from tests.harmony.third_party.architecture import (
    maps,
    normal,
    of,
    tokens,
    vector,
    whole,
    words,
)

WIDTH = 16


class Recipe(NamedTuple):
    """A class and its configuration, and the rest of an ``Architecture``."""

    cls: type[nn.Module]
    config: Any
    batch: dict[str, Tensor]
    pool: Callable[[Any], Tensor]
    shared: Mapping[str, Any] = MappingProxyType({})


SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def transformer(**extra: Any) -> dict[str, Any]:
    """The sizes most configurations name alike."""
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return sizes | extra


def causal(**extra: Any) -> dict[str, Any]:
    """As ``transformer``, of a language model with rotated positions and shared keys."""
    return transformer(vocab_size=23, num_key_value_heads=1, use_cache=False, **SPECIAL) | extra


rows = of("last_hidden_state", tokens)
space = of("last_hidden_state", maps)
pooled = of("pooler_output", vector)


def towers(first: str, second: str) -> Callable[[Any], Tensor]:
    """The features of two towers, side by side."""
    return lambda output: torch.cat([getattr(output, first), getattr(output, second)], dim=1)


def text(cls: Any, config: Any, **shared: Any) -> Recipe:
    return Recipe(cls, config, words(23, 6), rows, shared)


def pixels(*shape: int) -> dict[str, Tensor]:
    """Images or clips."""
    return {"pixel_values": normal(*shape)}


def image(cls: Any, config: Any, size: int = 16, pool: Any = rows) -> Recipe:
    return Recipe(cls, config, pixels(3, size, size), pool)


def sequences(length: int, width: int, name: str) -> dict[str, Tensor]:
    return {name: normal(length, width)}


BART = {
    "vocab_size": 23,
    "d_model": WIDTH,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 16,
    "decoder_start_token_id": 1,
    "use_cache": False,
    **SPECIAL,
}


def encoder_decoder(cls: Any, config: Any) -> Recipe:
    """A text and its translation."""
    batch = words(23, 6) | {"decoder_input_ids": whole(23, 4, low=3)}
    return Recipe(cls, config, batch, rows, {"use_cache": False})


def with_dropout(config: Any, p: float) -> Any:
    """Set all dropout probabilities of a configuration and of its parts, except those that skip whole layers."""
    for name, value in vars(config).items():
        if isinstance(value, t.PreTrainedConfig):
            with_dropout(value, p)
        elif "layerdrop" in name:
            setattr(config, name, 0.0)
        elif "drop" in name and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(config, name, p or type(value)(0))  # some fields must stay whole numbers
    return config
