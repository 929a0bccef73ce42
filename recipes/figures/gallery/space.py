"""The common space of video and text of a trained model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from recipes.config import Config
from recipes.model.build import device_of
from recipes.restore import restore

TEXTS_AT_ONCE = 2048


@dataclass(frozen=True)
class Space:
    """A model in evaluation mode, with its configuration and its vocabulary."""

    config: Config
    tokenizer: Tokenizer
    modules: nn.ModuleDict

    @torch.inference_mode()
    def videos(self, windows: np.ndarray) -> Tensor:
        """Embeddings (B, D) of windows, uint8 (B, T, H, W, 3)."""
        objective = self.modules["objective"]
        encoded = self.modules["model"].encode("video", self._on_device(windows))
        return objective.va_to_vt(objective.video_to_va(encoded)).float().cpu()

    @torch.inference_mode()
    def texts(self, ids: np.ndarray) -> Tensor:
        """Embeddings (N, D) of texts, word ids int64 (N, W)."""
        model, objective = self.modules["model"], self.modules["objective"]
        parts = [ids[i : i + TEXTS_AT_ONCE] for i in range(0, len(ids), TEXTS_AT_ONCE)]
        encoded = [objective.text_to_vt(model.encode("text", self._on_device(part))) for part in parts]
        return torch.cat(encoded).float().cpu()

    def _on_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(next(self.modules.parameters()).device)


def load_space(folder: Path, device: str | None = None, overrides: Sequence[str] = ()) -> Space:
    """The space of a checkpoint, or of a run's newest.

    Raises:
        ConfigError, OSError, ValueError: There is no checkpoint, or it cannot be read.
    """
    _, config, tokenizer, modules = restore(folder, device=device, overrides=overrides)
    return Space(config, tokenizer, modules.to(device_of(config)).eval())
