"""Features of clips from a model that is not trained further, before its heads: several windows of each."""

from typing import NamedTuple

import torch
from torch import Tensor

from recipes.config import Config
from recipes.data.clips import Skipped
from recipes.data.windows import WindowedClips, Windows
from recipes.data.workers import Loader
from recipes.errors import ConfigError, DataError
from recipes.model.vatt import VATT
from recipes.progress import progress_bar


class Frozen(NamedTuple):
    """Features of the clips that could be read.

    Attributes:
        features: (N, W, D) of the W windows of each clip, on the CPU.
        rows: Of the index, (N,).
        skipped: The other clips.
    """

    features: Tensor
    rows: list[int]
    skipped: list[Skipped]


def frozen_features(model: VATT, clips: WindowedClips, config: Config) -> Frozen:
    """Encode every window in evaluation mode, without gradients.

    Args:
        model: On the device to use; its mode is left as it was.
        clips: What to read.
        config: Of the run: batch size, workers, timeout.

    Raises:
        ConfigError: The model takes features in place of pictures and sound.
        DataError: Not one clip could be read.
    """
    if config.clip.inputs == "features":
        raise ConfigError(
            "this model takes ready-made features (clip.inputs=features); pictures and sound are read here"
        )
    device, training = next(model.parameters()).device, model.training
    model.eval()
    features, rows, skipped = [], [], []
    size = max(1, config.evaluate.batch_size // clips.count)
    items = range(len(clips))
    batches = [items[first : first + size] for first in range(0, len(items), size)]
    data = config.data
    loader: Loader[list[Windows | Skipped]] = Loader(
        clips, batches, list, data.workers, data.timeout, data.prefetch_gib
    )
    with torch.inference_mode(), progress_bar(total=len(clips), desc="features", unit="clip", leave=False) as bar:
        for batch in loader:
            read = [item for item in batch if isinstance(item, Windows)]
            skipped += [item for item in batch if isinstance(item, Skipped)]
            if read:
                raw = torch.stack([torch.from_numpy(item.raw) for item in read]).to(device)
                encoded = model.encode(clips.modality, raw.flatten(0, 1))
                features.append(encoded.unflatten(0, raw.shape[:2]).float().cpu())
                rows += [item.row for item in read]
            bar.update(len(batch))
    model.train(training)
    if not rows:
        raise DataError(
            f"none of the {len(clips)} clips could be read; the first is {skipped[0].id}: {skipped[0].reason}"
        )
    return Frozen(torch.cat(features).clone(), rows, skipped)  # a clone, outside of inference mode, can be trained on
