"""Clips with known truth, in memory: what the study trains and tests on."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

RARE = 0.25  # share of the concepts that count as rare: those with the fewest clips


@dataclass(frozen=True)
class Clips:
    """N clips as the model takes them, and what they show. Clips of one recording are neighbours."""

    video: Tensor  # pixels uint8 (N, T, H, W, 3), or features float32 (N, T, 1024)
    audio: Tensor  # waveforms (N, S), or features (N, T, 128)
    text: Tensor  # word ids (N, 1, W), 0 is padding
    text_key: Tensor  # equal where the words are equal, (N, 1)
    concept: Tensor  # what a clip shows, (N,)
    category: Tensor  # the kind of its concept, (N,)
    recording: Tensor  # the video that a clip is cut from, (N,)
    weights: Tensor  # how far sound and text are to be trusted, (N, 2): in the order of the losses

    def __len__(self) -> int:
        return len(self.video)

    def take(self, rows: Tensor) -> "Clips":
        """The clips in some rows, or of a mask."""
        return Clips(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """Inputs of `recipes.model.vatt.VATT` for the clips in some rows (B,); `index` is the row."""
        valid = torch.ones(len(rows), dtype=torch.bool)
        return {
            "video": self.video[rows],
            "audio": self.audio[rows],
            "audio_valid": valid,
            "text": self.text[rows],
            "text_valid": valid[:, None],
            "text_key": self.text_key[rows],
            "index": rows,
            "weights": self.weights[rows],
        }


@dataclass(frozen=True)
class World:
    """The data of one run."""

    train: Clips  # to train on, all aligned
    test: Clips  # to retrieve, from other recordings
    rare: Tensor  # mask over the concepts: those that are rare among the training clips
    vocabulary: int  # number of words


def text_keys(text: Tensor) -> Tensor:
    """A positive number (N, 1) for each text (N, 1, W), equal where the words are equal."""
    return torch.unique(text[:, 0], dim=0, return_inverse=True)[1][:, None] + 1


def rare_concepts(concept: Tensor, concepts: int) -> Tensor:
    """Mask (concepts,) of the quarter of the concepts that have the fewest clips (N,)."""
    counts = torch.bincount(concept, minlength=concepts)
    mask = torch.zeros(concepts, dtype=torch.bool)
    mask[counts.argsort(stable=True)[: round(RARE * concepts)]] = True
    return mask
