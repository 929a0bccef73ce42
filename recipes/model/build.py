"""The model and its objective from a configuration, and a batch on its way to them."""

import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from harmony.blocks import last_part
from recipes.config import LAST_PARTS, Config, DataConfig, TrainConfig
from recipes.data.vocabulary import load_vectors
from recipes.errors import ConfigError
from recipes.model.objective import Objective
from recipes.model.vatt import SIZES, VATT

INPUTS = ("video", "audio", "text", "audio_valid", "text_valid", "text_key", "index", "weights")
WORDS = "model.tokens.text.words.weight"  # name of the word vectors


def build(config: Config, tokenizer: Tokenizer, saved: Mapping[str, torch.Size] | None = None) -> nn.ModuleDict:
    """{"model": VATT, "objective": Objective}, initialised from torch's random state.

    With the shapes of the saved weights that will be loaded, the file of word vectors is not read.
    """
    vectors = None
    if config.data.word_vectors:
        known = saved is not None and WORDS in saved
        vectors = torch.zeros(saved[WORDS]) if known else load_vectors(config.data.word_vectors, tokenizer)
    model = VATT(config.model, config.clip, tokenizer.get_vocab_size(), vectors)
    return nn.ModuleDict({"model": model, "objective": Objective(config.objective, SIZES[config.model.size].output)})


def device_of(train: TrainConfig) -> torch.device:
    """The device to run on; under torchrun each process has its own GPU."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if train.device == "auto" else train.device
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    return torch.device(name)


def use_cores(train: TrainConfig, data: DataConfig) -> None:
    """On a CPU, leave a core to each worker of the loader: more threads would wait for one another.

    OMP_NUM_THREADS, which torchrun sets, takes precedence.
    """
    if device_of(train).type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) - max(1, data.workers)))


def model_inputs(batch: dict[str, Any], device: torch.device) -> dict[str, Tensor]:
    """The tensors of a batch that the model takes, on the device; {} for a batch without clips."""
    names = [name for name in INPUTS if name in batch]
    if torch.device(device).type != "cuda":
        return {name: batch[name].to(device) for name in names}
    # Only from pinned memory does the host go on while it is copied.
    return {name: batch[name].pin_memory().to(device, non_blocking=True) for name in names}


def check_patterns(config: Config, model: nn.Module) -> None:
    """Raise a ConfigError where the configuration asks for parameters that the model does not have."""
    check_wrt(config.gram.wrt, model, "gram.wrt")
    if config.has_realignment:
        _require_some(matching(config.realign.layers, model), config.realign.layers, model, "realign.layers")


def check_wrt(wrt: str | None, model: nn.Module, key: str) -> None:
    """Raise a ConfigError where ``wrt``, given by ``key``, chooses no parameter of the model."""
    try:
        chosen = chosen_parameters(wrt, model)
    except ValueError as error:
        raise ConfigError(f"{key}={wrt}: {error}") from error
    _require_some(chosen, wrt, model, key)


def chosen_parameters(wrt: str | None, model: nn.Module) -> dict[str, Tensor]:
    """The parameters by name: of the last part of the encoder, or those that match a regular expression; None: all."""
    if wrt not in LAST_PARTS:
        return matching(wrt, model)
    params = dict(model.named_parameters())
    return {name: params[name] for name in last_part(wrt, params)}


def matching(pattern: str | None, model: nn.Module) -> dict[str, Tensor]:
    """The parameters whose names match a regular expression; None: all."""
    return {name: p for name, p in model.named_parameters() if re.search(pattern or "", name)}


def _require_some(chosen: Mapping[str, Tensor], pattern: str | None, model: nn.Module, key: str) -> None:
    if not chosen:
        parts = sorted({name.split(".")[0] for name, _ in model.named_parameters()})
        raise ConfigError(f"{key}={pattern!r} matches no parameter; their names begin with {', '.join(parts)}")
