"""A trained model from its checkpoint."""

from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer
from torch import nn

from recipes.config import Config, load
from recipes.data import vocabulary
from recipes.training import checkpoint
from recipes.training.ema import Ema
from recipes.trimodal.build import build


class Restored(NamedTuple):
    """What a checkpoint holds, without the state of its training.

    Attributes:
        folder: The checkpoint itself.
        config: The configuration of its run.
        tokenizer: The run's vocabulary.
        modules: Model and objective, as training left them, in training mode, on the CPU.
    """

    folder: Path
    config: Config
    tokenizer: Tokenizer
    modules: nn.ModuleDict


def restore(folder: Path, averaged: bool = True) -> Restored:
    """Load a run's newest checkpoint, or the one that ``folder`` is.

    Args:
        folder: ``runs/NAME``, or a checkpoint's folder.
        averaged: Take the moving average of the weights, where the run has one (`train.ema`).

    Raises:
        ConfigError, OSError, ValueError: There is no checkpoint, or it cannot be read.
    """
    folder = checkpoint.latest(folder)
    config = load(folder / "config.yaml")
    tokenizer = vocabulary.load(folder / "vocabulary.json")
    modules = build(config, tokenizer)
    checkpoint.load_weights(folder, modules)
    if averaged and config.train.ema is not None:
        ema = Ema(modules, config.train.ema)
        checkpoint.load(folder, ema.tensors())
        ema.swap()
    return Restored(folder, config, tokenizer, modules)
