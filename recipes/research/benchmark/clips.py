"""Random clips, as the recipe's model takes them."""

import torch
from torch import Tensor

from recipes.config import ClipFormat


def random_clips(clip: ClipFormat, words: int, size: int) -> dict[str, Tensor]:
    """A batch of ``size`` clips of noise and of words below ``words``; nothing is missing."""
    return {
        "video": torch.randint(0, 256, (size, clip.frames, clip.size, clip.size, 3), dtype=torch.uint8),
        "audio": torch.rand(size, clip.samples) * 2 - 1,
        "text": torch.randint(1, words, (size, clip.narrations, clip.words)),
        "audio_valid": torch.ones(size, dtype=torch.bool),
        "text_valid": torch.ones(size, clip.narrations, dtype=torch.bool),
        "text_key": 1 + torch.arange(size * clip.narrations).view(size, -1),
        "index": torch.arange(size),
    }
