"""The model and its objective from a configuration, and a batch on its way to them."""

import os
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from recipes.config import Config
from recipes.data.vocabulary import load_vectors
from recipes.trimodal.model import SIZES, VATT
from recipes.trimodal.objective import Objective

INPUTS = ("video", "audio", "text", "audio_valid", "text_valid", "same_text")


def build(config: Config, tokenizer: Tokenizer) -> nn.ModuleDict:
    """{"model": VATT, "objective": Objective}, initialised from torch's random state."""
    vectors = load_vectors(config.data.word_vectors, tokenizer) if config.data.word_vectors else None
    model = VATT(config.model, config.clip, tokenizer.get_vocab_size(), vectors)
    return nn.ModuleDict({"model": model, "objective": Objective(config.objective, SIZES[config.model.size].output)})


def device_of(config: Config) -> torch.device:
    """The device to run on."""
    if config.train.device != "auto":
        return torch.device(config.train.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def use_cores(config: Config) -> None:
    """Leave the loader's workers a core each: on a CPU, threads that wait for one another lose more than they win."""
    if device_of(config).type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) - config.data.workers))


def model_inputs(batch: dict[str, Any], device: torch.device) -> dict[str, Tensor]:
    """The tensors of a batch that the model takes, on the device."""
    return {name: batch[name].to(device, non_blocking=True) for name in INPUTS}
