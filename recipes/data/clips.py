"""Clips ready for the model: windows of an index, read, augmented, tokenized, and collated into batches.

A clip that cannot be read becomes a `Skipped`, which travels with its batch; no broken file ends a run.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset as Index
from tokenizers import Tokenizer

from recipes.config import AugmentConfig, ClipFormat
from recipes.data.augment import add_noise, augment, center
from recipes.data.index import PLACES, mapped, narration_places
from recipes.data.layouts.youtube8m import AUDIO
from recipes.data.reader import RandomReader, Reader
from recipes.data.recording import Recording, Row, Window
from recipes.data.sampler import Key
from recipes.data.skipped import Skipped
from recipes.data.vocabulary import UNKNOWN, encode


@dataclass(frozen=True)
class Clip:
    """One sample: `video` uint8 (T, H, W, 3), `audio` float32 (S,), `text` int64 (P, W).

    Of features, `video` is float32 (T, 1024) and `audio` float32 (T, 128).

    Without sound, `audio` is zero and `has_audio` False; where there is no text, `text` is zero. `captions` are the
    texts of the first rows of `text`; `start` is in seconds; `index` is the clip's position in its dataset.
    """

    index: int
    id: str
    video: np.ndarray
    audio: np.ndarray
    has_audio: bool
    text: np.ndarray
    captions: list[str]
    start: float


class TrainClips(RandomReader[Clip]):
    """A random window of a clip, augmented, with the narrations nearest to it in time. Features are not augmented."""

    def __init__(self, index: Index, tokenizer: Tokenizer, fmt: ClipFormat, seed: int, augment: AugmentConfig):
        """
        Args:
            index: rows as from `load_index`.
            tokenizer: the vocabulary.
            fmt: the shape of a clip.
            seed: of all randomness.
            augment: how much to vary a clip.
        """
        super().__init__(index, fmt)
        self.tokenizer, self.seed, self.config = tokenizer, seed, augment

    def item(self, key: Key, row: Row, windows: list[Window], rng: np.random.Generator) -> Clip:
        """See `Reader`."""
        window, fmt = windows[0], self.fmt
        video, audio = window.video, sound_of(window, fmt)
        if fmt.inputs == "raw":
            video = augment(video, fmt.size, rng, self.config)
            audio = add_noise(audio, rng, self.config.noise)
        captions = nearest(row["narrations"], window.middle, fmt.narrations)
        text = encode_captions(self.tokenizer, captions, fmt.narrations, fmt.words)
        return Clip(key[1], row["id"], video, audio, window.audio is not None, text, captions, window.start)


class NarratedClips(Reader[Clip]):
    """Every clip of an index: one per narration, wordless ones included, and one per video that has none; P = 1.

    Nothing is random. A clip is seen through one window or more, spread evenly over its narration, or over the clip of
    its row, for a text over the whole of it. What is kept in memory does not grow with the index.
    """

    def __init__(self, index: Index, tokenizer: Tokenizer, fmt: ClipFormat, windows: int = 1):
        """
        Args:
            index: rows as from `load_index`.
            tokenizer: the vocabulary.
            fmt: the shape of a clip; its `narrations` is not used.
            windows: of each clip; one is about the middle.
        """
        super().__init__(index, fmt)
        self.tokenizer, self.windows = tokenizer, windows
        self.places = self.clips_of_index()

    def clips_of_index(self) -> Sequence[dict[str, int]]:
        """The `row` of each clip, and the position of its `narration` there; -1: none, the clip is the row's."""
        return narration_places(self.index)

    def __len__(self) -> int:
        return len(self.places)

    def row(self, key: tuple[int, int]) -> int:
        """The row that a key, (clip, window), reads."""
        return self.places[key[0]]["row"]

    def place(self, clip: int) -> tuple[Row, int]:
        """The row of a clip's video, and the position of its narration there; -1 for a video without any."""
        place = self.places[clip]
        return self.index[place["row"]], place["narration"]

    def narration(self, clip: int, row: Row) -> Row:
        """The narration of a clip; one without words over the whole of a video that has none."""
        position = self.places[clip]["narration"]
        return {"start": 0.0, "end": math.inf, "text": ""} if position < 0 else row["narrations"][position]

    def starts(self, key: tuple[int, int], row: Row, recording: Recording, rng: None) -> list[float]:
        """About an even share of the narration."""
        return [recording.start_about(self.narration(key[0], row), (key[1] + 0.5) / self.windows)]

    def item(self, key: tuple[int, int], row: Row, windows: list[Window], rng: None) -> Clip:
        """See `Reader`; not augmented."""
        window, captions = windows[0], [self.narration(key[0], row)["text"]]
        video = center(window.video, self.fmt.size) if self.fmt.inputs == "raw" else window.video
        text = encode_captions(self.tokenizer, captions, 1, self.fmt.words)
        audio, has_audio = sound_of(window, self.fmt), window.audio is not None
        return Clip(key[0], row["id"], video, audio, has_audio, text, captions, window.start)


class EvalClips(NarratedClips):
    """The clips of an index that have words. Where not one has, as in AudioSet, there is one clip per video."""

    def clips_of_index(self) -> Sequence[dict[str, int]]:
        """See `NarratedClips.clips_of_index`."""
        spoken = (
            {"row": number, "narration": position}
            for number, row in enumerate(self.index.select_columns("narrations"))
            for position, narration in enumerate(row["narrations"])
            if encode(self.tokenizer, narration["text"], self.fmt.words).any()
        )
        places = mapped(spoken, PLACES)
        return places if len(places) else [{"row": number, "narration": -1} for number in range(len(self.index))]


def sound_of(window: Window, fmt: ClipFormat) -> np.ndarray:
    """The sound of a window; zeros where it has none."""
    if window.audio is not None:
        return window.audio
    return np.zeros((fmt.frames, AUDIO) if fmt.inputs == "features" else fmt.samples, np.float32)


def nearest(narrations: Sequence[dict[str, Any]], time: float, count: int) -> list[str]:
    """The texts of the `count` narrations nearest to a time: distance to the interval, 0 inside; ties by start."""

    def distance(narration: dict[str, Any]) -> tuple[float, float]:
        return max(narration["start"] - time, time - narration["end"], 0.0), narration["start"]

    return [narration["text"] for narration in sorted(narrations, key=distance)[:count]]


def collate(items: Sequence[Clip | Skipped]) -> dict[str, Any]:
    """Joins clips into a batch; those that were skipped make it smaller.

    Args:
        items: clips of one format, and skipped ones.
    Returns:
        `video` uint8 (B, T, H, W, 3); `audio` float32 (B, S) (of features float32: (B, T, 1024), (B, T, 128));
        `audio_valid` bool (B,): zeros and False without sound;
        `text` int64 (B, P, W) and `text_valid` bool (B, P): zeros and False without a word;
        `text_key` int64 (B, P): equal where captions are, 0 without a word; see `recipes.model.objective`;
        `index` int64 (B,); `id` list of B; `captions` list of B lists; `start` float64 (B,); `skipped` list.
        Where every item was skipped there is `skipped` alone.
    """
    clips = [item for item in items if isinstance(item, Clip)]
    skipped = [item for item in items if isinstance(item, Skipped)]
    if not clips:
        return {"skipped": skipped}
    text = np.stack([clip.text for clip in clips])
    valid = text.any(-1)
    return {
        "video": torch.from_numpy(np.stack([clip.video for clip in clips])),
        "audio": torch.from_numpy(np.stack([clip.audio for clip in clips])),
        "audio_valid": torch.tensor([clip.has_audio for clip in clips]),
        "text": torch.from_numpy(text),
        "text_valid": torch.from_numpy(valid),
        "text_key": torch.from_numpy(np.stack([text_key(clip) for clip in clips])),
        "index": torch.tensor([clip.index for clip in clips]),
        "id": [clip.id for clip in clips],
        "captions": [clip.captions for clip in clips],
        "start": torch.tensor([clip.start for clip in clips], dtype=torch.float64),
        "skipped": skipped,
    }


def collate_windows(items: Sequence[Clip | Skipped], windows: int) -> dict[str, Any]:
    """Joins clips of several windows each into a batch; of a clip that lacks one, the others are left out too.

    Args:
        items: the windows of clip after clip.
        windows: of each clip.
    Returns:
        What `collate` makes of all windows of those clips that are whole, with one in `skipped` for each of the others.
    """
    clips = [items[first : first + windows] for first in range(0, len(items), windows)]
    broken = [next((item for item in clip if isinstance(item, Skipped)), None) for clip in clips]
    whole = [item for clip, why in zip(clips, broken, strict=True) if why is None for item in clip]
    return collate(whole) | {"skipped": [why for why in broken if why is not None]}


def text_key(clip: Clip) -> np.ndarray:
    """Names the captions of a clip: equal for the same words, and where one of them is unknown, the same letters.

    Returns:
        int64 (P,): a hash of each caption; 0 where there is no word.
    """
    keys = np.zeros(len(clip.text), np.int64)
    for p, (words, caption) in enumerate(zip(clip.text, clip.captions, strict=False)):
        if words.any():
            letters = caption.casefold() if (words == UNKNOWN).any() else ""
            digest = hashlib.blake2b(words.tobytes() + letters.encode(), digest_size=8).digest()
            keys[p] = int.from_bytes(digest, "little", signed=True)
    return keys


def encode_captions(tokenizer: Tokenizer, captions: list[str], count: int, words: int) -> np.ndarray:
    """Word ids (count, words), the rows after the last caption zero."""
    text = np.zeros((count, words), np.int64)
    for row, caption in enumerate(captions):
        text[row] = encode(tokenizer, caption, words)
    return text
