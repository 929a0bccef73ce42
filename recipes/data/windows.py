"""Every clip through several windows, of one modality alone: for features of whole clips."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset as Index
from torch.utils.data import Dataset

from recipes.data.augment import center
from recipes.data.clips import ClipFormat, Skipped, part_of
from recipes.data.decode import BrokenClip, Clip, open_clip


@dataclass(frozen=True)
class Windows:
    """The windows of a row: `raw` uint8 (n, T, H, W, 3) of video, float32 (n, S) of audio."""

    row: int
    raw: np.ndarray


class WindowedClips(Dataset[Windows | Skipped]):
    """A clip of each row, through windows whose first begins with the clip and whose last ends with it.

    Nothing is random. Only the modality that is asked for is read: a file of sound needs no pictures.
    """

    def __init__(self, index: Index, fmt: ClipFormat, modality: str, count: int, rows: Sequence[int] | None = None):
        """
        Args:
            index: rows as from `load_index`.
            fmt: the shape of a window.
            modality: "video" or "audio".
            count: windows of each clip; one is about the middle.
            rows: those to read; None: all.
        """
        self.index, self.fmt, self.modality, self.count = index, fmt, modality, count
        self.rows = range(len(index)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, item: int) -> int:
        """The row that an item reads."""
        return self.rows[item]

    def __getitem__(self, item: int) -> Windows | Skipped:
        row, fmt = self.index[self.rows[item]], self.fmt
        length = fmt.audio_seconds if self.modality == "audio" else fmt.frames / fmt.fps
        read = _sound if self.modality == "audio" else _pictures
        try:
            with open_clip(row["video"]) as clip:
                first, end = part_of(row, clip)
                shares = np.linspace(0, 1, self.count) if self.count > 1 else [0.5]
                starts = [first + share * max(0.0, end - first - length) for share in shares]
                return Windows(self.rows[item], np.stack([read(clip, start, end, fmt) for start in starts]))
        except BrokenClip as broken:
            return Skipped(row["id"], broken.reason)


def _pictures(clip: Clip, start: float, end: float, fmt: ClipFormat) -> np.ndarray:
    """Pictures from `start` on, cropped to the middle: uint8 (T, H, W, 3); at `end`, the last one stays."""
    shown = max(1, math.ceil(round((end - start) * fmt.fps, 6)))
    times = start + np.minimum(np.arange(fmt.frames), shown - 1) / fmt.fps
    return center(clip.pictures(times, fmt.short_side), fmt.size)


def _sound(clip: Clip, start: float, end: float, fmt: ClipFormat) -> np.ndarray:
    """Sound from `start` on: float32 (S,), zero after `end`."""
    sound = clip.sound(start, fmt.sample_rate, fmt.samples)
    if sound is None:
        raise BrokenClip(clip.path, "it has no sound")
    sound[round((end - start) * fmt.sample_rate) :] = 0
    return sound
