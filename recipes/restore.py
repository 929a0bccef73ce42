"""A trained model from its checkpoint: wherever that was trained, and wherever its data are now."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer
from torch import nn

from recipes.config import Config, load
from recipes.data import vocabulary
from recipes.data.storage import is_url
from recipes.errors import ConfigError
from recipes.keys import key
from recipes.model.build import build, device_of, use_cores
from recipes.splits import Splits, train_and_test
from recipes.training import checkpoint
from recipes.training.ema import Ema


class Restored(NamedTuple):
    """What a checkpoint holds, without the state of its training."""

    folder: Path  # of the checkpoint itself
    config: Config  # of its run, with what was overridden
    tokenizer: Tokenizer
    modules: nn.ModuleDict  # {"model", "objective"} in training mode


@dataclass
class RestoreKeys:
    """Keys of every command that restores a checkpoint."""

    checkpoint: Path = key(meaning="a run's folder, or one of its checkpoints")
    device: str | None = key(None, "cpu, cuda, ...; null: as in training, where that is here")
    workers: int | None = key(None, "processes that read clips; null: as in training", least=0, most=1024)

    def overrides(self) -> list[str]:
        """What these keys change in the configuration of the run, as key=value."""
        return [] if self.workers is None else [f"data.workers={self.workers}"]


@dataclass
class EmbeddingKeys(RestoreKeys):
    """Keys of every command that embeds clips with the checkpoint."""

    batch_size: int | None = key(None, "windows embedded together; null: evaluate.batch_size", least=1, most=2**20)

    def overrides(self) -> list[str]:
        """See `RestoreKeys.overrides`."""
        return super().overrides() + [f"evaluate.batch_size={self.batch_size}"] * (self.batch_size is not None)


def restore_with(keys: RestoreKeys) -> Restored:
    """`restore` what the keys of a command name, on its device, with the cores of this machine shared out."""
    restored = restore(keys.checkpoint, device=keys.device, overrides=keys.overrides())
    restored.modules.to(device_of(restored.config.train))
    use_cores(restored.config.train, restored.config.data)
    return restored


def restore(folder: Path, averaged: bool = True, device: str | None = None, overrides: Sequence[str] = ()) -> Restored:
    """Load a run's newest checkpoint, or the one that ``folder`` is, on the CPU; no data and no word vectors are read.

    Args:
        folder: ``runs/NAME``, or a checkpoint's folder.
        averaged: Take the moving average of the weights, where the run has one (`train.ema`).
        device: Value for `train.device`; None: as in training, or "auto" where this machine lacks that device.
        overrides: ``key=value`` pairs for other keys, which must not change the model: ``data.workers=4``.

    Raises:
        ConfigError, OSError, ValueError: There is no checkpoint, or it cannot be read.
    """
    folder = checkpoint.latest(folder)
    config = load_config(folder, device, overrides)
    tokenizer = vocabulary.load(folder / checkpoint.VOCABULARY)
    modules = build(config, tokenizer, checkpoint.saved_shapes(folder))
    checkpoint.load_weights(folder, modules)
    if averaged and config.train.ema is not None:
        ema = Ema(modules, config.train.ema)
        checkpoint.load_tensors(folder, ema.tensors())
        ema.swap()
    return Restored(folder, config, tokenizer, modules)


def load_config(folder: Path, device: str | None = None, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a checkpoint's run, see `restore`."""
    chosen = [] if device is None else [f"train.device={device}"]
    return load(folder / checkpoint.CONFIG, [*chosen, *overrides], to_train=False)


def own_data(config: Config) -> Splits:
    """What a restored run trained on and held out, see `train_and_test`.

    Raises:
        ConfigError: It is behind a URL: a checkpoint of others does not decide what is fetched from where.
    """
    named = [config.data.manifest, config.data.test, *(source.manifest for source in config.data.sources.values())]
    if urls := [place for place in named if place is not None and is_url(place)]:
        raise ConfigError(f"the checkpoint names data at {urls[0]}: if it is to be fetched, pass data={urls[0]}")
    return train_and_test(config)
