"""Clips of features in place of pictures and sound: the same windows, batches and skipped clips as in `clips`."""

from typing import Any

import numpy as np

from recipes.data.clips import (  # fmt: skip
    Clip,
    ClipFormat,
    EvalClips,
    NarratedClips,
    Skipped,
    TrainClips,
    encode_captions,
    nearest,
)
from recipes.data.decode import BrokenClip
from recipes.data.layouts.youtube8m import AUDIO, Features, dequantize, read_features
from recipes.data.sampler import Key


class TrainFeatures(TrainClips):
    """A random window of `clip.frames` seconds of features, with the narrations nearest to it; not augmented."""

    def __getitem__(self, key: Key) -> Clip | Skipped:
        """Reads row `key[1]` as epoch `key[0]` sees it; its window begins at any second of the video."""
        number = self.row(key)
        row, fmt = self.index[number], self.fmt
        rng = self.rng(key)
        try:
            features = read_features(row["video"])
        except BrokenClip as broken:
            return Skipped(row["id"], broken.reason)
        start = int(rng.integers(max(0, len(features.rgb) - fmt.frames) + 1))
        captions = nearest(row["narrations"], start + fmt.frames / 2, fmt.narrations)
        text = encode_captions(self.tokenizer, captions, fmt.narrations, fmt.words)
        return _clip(number, row, features, start, text, captions, fmt)


class NarratedFeatures(NarratedClips):
    """Every clip of an index, as `NarratedClips`."""

    def read(self, clip: int, row: dict[str, Any], narration: int, share: float) -> Clip | Skipped:
        """Reads the window about a share of a narration, or of the video where there is none."""
        fmt = self.fmt
        try:
            features = read_features(row["video"])
        except BrokenClip as broken:
            return Skipped(row["id"], broken.reason)
        seconds = len(features.rgb)
        told = {"start": 0.0, "end": seconds, "text": ""} if narration < 0 else row["narrations"][narration]
        middle = (1 - share) * told["start"] + share * min(told["end"], seconds)
        start = int(min(max(0, middle - fmt.frames / 2), max(0, seconds - fmt.frames)))
        text = encode_captions(self.tokenizer, [told["text"]], 1, fmt.words)
        return _clip(clip, row, features, start, text, [told["text"]], fmt)


class EvalFeatures(NarratedFeatures, EvalClips):
    """The clips of an index that have words, or one per video where not one has, as `EvalClips`."""


def _clip(
    item: int, row: dict[str, Any], features: Features, start: int, text: np.ndarray, captions: list[str],
    fmt: ClipFormat,
) -> Clip:  # fmt: skip
    """The window from a second on: `video` float32 (T, 1024), `audio` float32 (T, 128)."""
    heard = features.audio is not None
    audio = _window(features.audio, start, fmt.frames) if heard else np.zeros((fmt.frames, AUDIO), np.float32)
    return Clip(item, row["id"], _window(features.rgb, start, fmt.frames), audio, heard, text, captions, float(start))


def _window(rows: np.ndarray, start: int, length: int) -> np.ndarray:
    """Rows from `start` on, as numbers; after the end of the video its last second stays, as pictures do."""
    seconds = np.minimum(np.arange(start, start + length), len(rows) - 1)
    return dequantize(rows[seconds])
