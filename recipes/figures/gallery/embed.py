"""Embeddings in the common space of video and text, of a model in evaluation mode."""

import numpy as np
import torch
from torch import Tensor, nn


@torch.inference_mode()
def embed_video(modules: nn.ModuleDict, window: np.ndarray) -> Tensor:
    """Embedding (D,) of a window, uint8 (T, H, W, 3)."""
    objective = modules["objective"]
    encoded = modules["model"].encode("video", _on_device(window[None], modules))
    return objective.va_to_vt(objective.video_to_va(encoded))[0].float().cpu()


@torch.inference_mode()
def embed_texts(modules: nn.ModuleDict, ids: np.ndarray) -> Tensor:
    """Embeddings (N, D) of texts, word ids int64 (N, W)."""
    encoded = modules["model"].encode("text", _on_device(ids, modules))
    return modules["objective"].text_to_vt(encoded).float().cpu()


def _on_device(array: np.ndarray, modules: nn.ModuleDict) -> Tensor:
    return torch.from_numpy(array).to(next(modules.parameters()).device)
