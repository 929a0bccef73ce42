"""Every clip through several windows, of one modality alone: for features of whole clips."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset as Index
from torch.utils.data import Dataset

from recipes.data.augment import AugmentConfig, add_noise, augment, squares
from recipes.data.clips import ClipFormat, EpochRows, Skipped, part_of
from recipes.data.decode import BrokenClip, Clip, open_clip
from recipes.data.sampler import Key


@dataclass(frozen=True)
class Windows:
    """The windows of a row: `raw` uint8 (n, T, H, W, 3) of video, float32 (n, S) of audio."""

    row: int
    raw: np.ndarray


class WindowedClips(Dataset[Windows | Skipped]):
    """A clip of each row, through windows whose first begins with the clip and whose last ends with it.

    Nothing is random. Only the modality that is asked for is read: a file of sound needs no pictures.
    """

    def __init__(
        self, index: Index, fmt: ClipFormat, modality: str, count: int, rows: Sequence[int] | None = None,
        crops: int = 1,
    ):  # fmt: skip
        """
        Args:
            index: rows as from `load_index`.
            fmt: the shape of a window.
            modality: "video" or "audio".
            count: windows of each clip; one is about the middle.
            rows: those to read; None: all.
            crops: squares of each window of video, as `squares` cuts them; n is then count * crops.
        """
        self.index, self.fmt, self.modality, self.count, self.crops = index, fmt, modality, count, crops
        self.rows = range(len(index)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, item: int) -> int:
        """The row that an item reads."""
        return self.rows[item]

    def __getitem__(self, item: int) -> Windows | Skipped:
        row, fmt = self.index[self.rows[item]], self.fmt
        length = seconds(fmt, self.modality)
        try:
            with open_clip(row["video"]) as clip:
                first, end = part_of(row, clip)
                shares = np.linspace(0, 1, self.count) if self.count > 1 else [0.5]
                starts = [first + share * max(0.0, end - first - length) for share in shares]
                if self.modality == "audio":
                    raw = np.stack([sound(clip, start, end, fmt) for start in starts])
                else:
                    shown = (pictures(clip, start, end, fmt) for start in starts)
                    raw = np.concatenate([squares(video, fmt.size, self.crops) for video in shown])
                return Windows(self.rows[item], raw)
        except BrokenClip as broken:
            return Skipped(row["id"], broken.reason)


class RandomWindows(EpochRows, Dataset[Windows | Skipped]):
    """A random window of each row, of one modality alone, augmented: to train on."""

    def __init__(self, index: Index, fmt: ClipFormat, modality: str, seed: int, augment: AugmentConfig):
        """
        Args:
            index: rows as from `load_index`.
            fmt: the shape of a window.
            modality: "video" or "audio".
            seed: of all randomness.
            augment: how much to vary a clip.
        """
        super().__init__(index, seed)
        self.fmt, self.modality, self.config = fmt, modality, augment

    def __getitem__(self, key: Key) -> Windows | Skipped:
        """Reads row `key[1]` as epoch `key[0]` sees it; its window begins uniformly within the clip."""
        number = self.row(key)
        row, fmt = self.index[number], self.fmt
        rng = self.rng(key)
        try:
            with open_clip(row["video"]) as clip:
                first, end = part_of(row, clip)
                start = first + rng.uniform(0.0, max(0.0, end - first - seconds(fmt, self.modality)))
                if self.modality == "audio":
                    raw = add_noise(sound(clip, start, end, fmt), rng, self.config.noise)
                else:
                    raw = augment(pictures(clip, start, end, fmt), fmt.size, rng, self.config)
        except BrokenClip as broken:
            return Skipped(row["id"], broken.reason)
        return Windows(number, raw[None])


def collate(items: Sequence[Windows | Skipped]) -> dict[str, Any]:
    """Joins windows into a batch.

    Returns:
        `raw` (B, n, ...), `row` int64 (B,) and the list `skipped`; where every item was skipped that list alone.
    """
    read = [item for item in items if isinstance(item, Windows)]
    skipped = {"skipped": [item for item in items if isinstance(item, Skipped)]}
    if not read:
        return skipped
    raw = torch.from_numpy(np.stack([item.raw for item in read]))
    return {"raw": raw, "row": torch.tensor([item.row for item in read])} | skipped


def seconds(fmt: ClipFormat, modality: str) -> float:
    """Length of a window of one modality."""
    return fmt.audio_seconds if modality == "audio" else fmt.frames / fmt.fps


def pictures(clip: Clip, start: float, end: float, fmt: ClipFormat) -> np.ndarray:
    """Pictures from `start` on: uint8 (T, H, W, 3), not cropped; at `end`, the last one stays."""
    shown = max(1, math.ceil(round((end - start) * fmt.fps, 6)))
    times = start + np.minimum(np.arange(fmt.frames), shown - 1) / fmt.fps
    return clip.pictures(times, fmt.short_side)


def sound(clip: Clip, start: float, end: float, fmt: ClipFormat) -> np.ndarray:
    """Sound from `start` on: float32 (S,), zero after `end`."""
    wave = clip.sound(start, fmt.sample_rate, fmt.samples)
    if wave is None:
        raise BrokenClip(clip.path, "it has no sound")
    wave[round((end - start) * fmt.sample_rate) :] = 0
    return wave
