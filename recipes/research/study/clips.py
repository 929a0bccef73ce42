"""Clips whose truth is known, in memory: what the study trains and tests on."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

RARE = 0.25  # share of the concepts, those with the fewest clips, that count as rare


@dataclass(frozen=True)
class Clips:
    """N clips, as the model takes them, and what they show.

    Attributes:
        video: Pixels uint8 (N, T, H, W, 3), or features float32 (N, T, 1024).
        audio: Waveforms (N, S), or features (N, T, 128).
        text: Word ids (N, 1, W), 0 is padding.
        text_key: Equal where the words are, (N, 1).
        concept: What a clip is of, (N,).
        category: What its concept is a kind of, (N,).
        recording: The video that a clip is a part of, (N,). Its clips follow one another.
    """

    video: Tensor
    audio: Tensor
    text: Tensor
    text_key: Tensor
    concept: Tensor
    category: Tensor
    recording: Tensor

    def __len__(self) -> int:
        return len(self.video)

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """The inputs of `recipes.model.vatt.VATT` of some clips (B,); their `index` is their row."""
        there = torch.ones(len(rows), dtype=torch.bool)
        return {
            "video": self.video[rows], "audio": self.audio[rows], "audio_valid": there, "text": self.text[rows],
            "text_valid": there[:, None], "text_key": self.text_key[rows], "index": rows,
        }  # fmt: skip

    def select(self, rows: Tensor) -> "Clips":
        """Some of the clips."""
        return Clips(**{name: value[rows] for name, value in vars(self).items()})

    def with_text_of(self, others: Tensor) -> "Clips":
        """The same clips, each with the text of another (N,)."""
        return replace(self, text=self.text[others], text_key=self.text_key[others])


@dataclass(frozen=True)
class World:
    """What one run sees.

    Attributes:
        train: Clips to train on, all of them clean.
        test: Clips to retrieve, of other recordings.
        rare: Mask over the concepts: the rare ones among the training clips.
        words: Size of the vocabulary.
    """

    train: Clips
    test: Clips
    rare: Tensor
    words: int


def keys(text: Tensor) -> Tensor:
    """A number (N, 1) for each text (N, 1, W), equal where the words are; never 0."""
    return torch.unique(text[:, 0], dim=0, return_inverse=True)[1][:, None] + 1


def rare_concepts(concept: Tensor, number: int) -> Tensor:
    """Mask (number,) of the quarter of the concepts that the fewest clips (N,) are of."""
    counts = torch.bincount(concept, minlength=number)
    mask = torch.zeros(number, dtype=torch.bool)
    mask[counts.argsort(stable=True)[: round(RARE * number)]] = True
    return mask
