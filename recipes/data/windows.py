"""Windows of one modality alone, for features of whole clips: a file of sound needs no pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset as Index

from recipes.config import AugmentConfig, ClipFormat
from recipes.data.augment import add_noise, augment, squares
from recipes.data.reader import RandomReader, Reader
from recipes.data.recording import Modality, Recording, Row, Window
from recipes.data.sampler import Key
from recipes.data.skipped import Skipped


@dataclass(frozen=True)
class Windows:
    """The windows of a row: `raw` uint8 (n, T, H, W, 3) of video, float32 (n, S) of audio."""

    row: int
    raw: np.ndarray


class WindowedClips(Reader[Windows]):
    """`count` windows of each of the rows (None: all), from beginning to end of the clip, `crops` squares of each."""

    def __init__(
        self,
        index: Index,
        fmt: ClipFormat,
        modality: Modality,
        count: int,
        rows: Sequence[int] | None = None,
        crops: int = 1,
    ):
        super().__init__(index, fmt, modality)
        self.count, self.crops = count, crops
        self.rows = range(len(index)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, key: int) -> int:
        return self.rows[key]

    def starts(self, key: int, row: Row, recording: Recording, rng: None) -> list[float]:
        shares = np.linspace(0, 1, self.count) if self.count > 1 else [0.5]
        return [recording.first + share * recording.room for share in shares]

    def item(self, key: int, row: Row, windows: list[Window], rng: None) -> Windows:
        if self.modality == "audio":
            return Windows(self.rows[key], np.stack([window.audio for window in windows]))
        cut = [squares(window.video, self.fmt.size, self.crops) for window in windows]
        return Windows(self.rows[key], np.concatenate(cut))


class RandomWindows(RandomReader[Windows]):
    """A random window of each row, augmented, to train on."""

    def __init__(self, index: Index, fmt: ClipFormat, modality: Modality, seed: int, augment: AugmentConfig):
        super().__init__(index, fmt, seed, modality)
        self.config = augment

    def item(self, key: Key, row: Row, windows: list[Window], rng: np.random.Generator) -> Windows:
        if self.modality == "audio":
            raw = add_noise(windows[0].audio, rng, self.config.noise)
        else:
            raw = augment(windows[0].video, self.fmt.size, rng, self.config)
        return Windows(key[1], raw[None])


def collate(items: Sequence[Windows | Skipped]) -> dict[str, Any]:
    """Joins windows: `raw` (B, n, ...), `row` int64 (B,), `skipped` list; the last alone if every item was skipped."""
    windows = [item for item in items if isinstance(item, Windows)]
    skipped = {"skipped": [item for item in items if isinstance(item, Skipped)]}
    if not windows:
        return skipped
    raw = torch.from_numpy(np.stack([item.raw for item in windows]))
    return {"raw": raw, "row": torch.tensor([item.row for item in windows])} | skipped
