"""Clips ready for the model: windows of an index, read, augmented, tokenized, and collated into batches."""

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

    Of features, `video` is float32 (T, 1024) and `audio` float32 (T, 128). Without sound, `audio` is zero and
    `has_audio` False. Where there is no text, `text` is zero. `captions` are the texts of the first rows of `text`;
    `start` is in seconds; `index` is the clip's position in its dataset. `weights` say how far its sound and its text
    are to be trusted.
    """

    index: int
    id: str
    video: np.ndarray
    audio: np.ndarray
    has_audio: bool
    text: np.ndarray
    captions: list[str]
    start: float
    weights: tuple[float, float] = (1.0, 1.0)


class TrainClips(RandomReader[Clip]):
    """A random window of each row, augmented, with the narrations nearest to it in time. Features are not augmented."""

    def __init__(self, index: Index, tokenizer: Tokenizer, fmt: ClipFormat, seed: int, augment: AugmentConfig):
        super().__init__(index, fmt, seed)
        self.tokenizer, self.config = tokenizer, augment

    def item(self, key: Key, row: Row, windows: list[Window], rng: np.random.Generator) -> Clip:
        window, fmt = windows[0], self.fmt
        video, audio = window.video, sound_of(window, fmt)
        if fmt.inputs == "raw":
            video = augment(video, fmt.size, rng, self.config)
            audio = add_noise(audio, rng, self.config.noise)
        narrations, text_weight = trusted(nearest(row["narrations"], window.middle, fmt.narrations))
        captions = [narration["text"] for narration in narrations]
        text = encode_captions(self.tokenizer, captions, fmt.narrations, fmt.words)
        weights = (weight_of(row["sound_weight"]), text_weight)
        return Clip(key[1], row["id"], video, audio, window.audio is not None, text, captions, window.start, weights)


class NarratedClips(Reader[Clip]):
    """Every clip of an index: one per narration, wordless ones included, and one per video that has none; P = 1.

    A key is (clip, window). The windows of a clip are spread evenly over its narration, or over the clip of its row.
    """

    def __init__(self, index: Index, tokenizer: Tokenizer, fmt: ClipFormat, windows: int = 1):
        super().__init__(index, fmt)
        self.tokenizer, self.windows = tokenizer, windows
        self.places = self.clips_of_index()

    def clips_of_index(self) -> Sequence[dict[str, int]]:
        """The `row` of each clip, and the position of its `narration` there; -1: none, the clip is the row's."""
        return narration_places(self.index)

    def __len__(self) -> int:
        return len(self.places)

    def row(self, key: tuple[int, int]) -> int:
        return self.places[key[0]]["row"]

    def place(self, clip: int) -> tuple[Row, int]:
        """The row of a clip, and the position of its narration there; -1: none."""
        place = self.places[clip]
        return self.index[place["row"]], place["narration"]

    def about(self, clip: int) -> dict[str, Any]:
        """What every table of clips says of one: see `recipes.evaluation.parts.CLIP`."""
        row, narration = self.place(clip)
        caption = row["narrations"][narration]["text"] if narration >= 0 else ""
        return {"clip": clip, "id": row["id"], "video": row["video"], "narration": narration, "caption": caption}

    def narration(self, clip: int, row: Row) -> Row:
        """The narration of a clip; an empty one over the whole video if there is none."""
        position = self.places[clip]["narration"]
        return {"start": 0.0, "end": math.inf, "text": ""} if position < 0 else row["narrations"][position]

    def starts(self, key: tuple[int, int], row: Row, recording: Recording, rng: None) -> list[float]:
        return [recording.start_about(self.narration(key[0], row), (key[1] + 0.5) / self.windows)]

    def item(self, key: tuple[int, int], row: Row, windows: list[Window], rng: None) -> Clip:
        window, captions = windows[0], [self.narration(key[0], row)["text"]]
        video = center(window.video, self.fmt.size) if self.fmt.inputs == "raw" else window.video
        text = encode_captions(self.tokenizer, captions, 1, self.fmt.words)
        audio, has_audio = sound_of(window, self.fmt), window.audio is not None
        return Clip(key[0], row["id"], video, audio, has_audio, text, captions, window.start)


class EvalClips(NarratedClips):
    """The clips of an index that have words. If none has, as in AudioSet, there is one clip per video."""

    def clips_of_index(self) -> Sequence[dict[str, int]]:
        spoken = (
            {"row": number, "narration": position}
            for number, row in enumerate(self.index.select_columns("narrations"))
            for position, narration in enumerate(row["narrations"])
            if encode(self.tokenizer, narration["text"], self.fmt.words).any()
        )
        places = mapped(spoken, PLACES)
        return places if len(places) else [{"row": number, "narration": -1} for number in range(len(self.index))]


def sound_of(window: Window, fmt: ClipFormat) -> np.ndarray:
    """The sound of a window, or zeros."""
    if window.audio is not None:
        return window.audio
    return np.zeros((fmt.frames, AUDIO) if fmt.inputs == "features" else fmt.samples, np.float32)


def nearest(narrations: Sequence[Row], time: float, count: int) -> list[Row]:
    """The `count` narrations nearest to a time: distance to the interval, 0 inside; ties by start."""

    def distance(narration: Row) -> tuple[float, float]:
        return max(narration["start"] - time, time - narration["end"], 0.0), narration["start"]

    return sorted(narrations, key=distance)[:count]


def trusted(narrations: list[Row]) -> tuple[list[Row], float]:
    """Those that have any weight, or all if none has, and the mean of their weights."""
    kept = [narration for narration in narrations if weight_of(narration["weight"]) > 0] or narrations
    return kept, sum(weight_of(narration["weight"]) for narration in kept) / max(len(kept), 1)


def weight_of(weight: float | None) -> float:
    """What a weight counts as that may be left out."""
    return 1.0 if weight is None else weight


def encode_captions(tokenizer: Tokenizer, captions: list[str], count: int, words: int) -> np.ndarray:
    """Word ids int64 (count, words); the rows after the last caption are zero."""
    text = np.zeros((count, words), np.int64)
    for row, caption in enumerate(captions):
        text[row] = encode(tokenizer, caption, words)
    return text


def collate(items: Sequence[Clip | Skipped]) -> dict[str, Any]:
    """Joins clips into a batch; those that were skipped make it smaller.

    Returns:
        `video` uint8 (B, T, H, W, 3) and `audio` float32 (B, S); of features float32 (B, T, 1024) and (B, T, 128).
        `text` int64 (B, P, W). `audio_valid` bool (B,) and `text_valid` bool (B, P): False where there is none.
        `text_key` int64 (B, P): equal where captions are, 0 without a word. `index` int64 (B,), `start` float64 (B,).
        `weights` float32 (B, 2): how far sound and text are to be trusted.
        Lists: `id`, `captions` and `skipped`; the last alone if every item was skipped.
    """
    clips = [item for item in items if isinstance(item, Clip)]
    skipped = [item for item in items if isinstance(item, Skipped)]
    if not clips:
        return {"skipped": skipped}
    text = np.stack([clip.text for clip in clips])
    return {
        "video": torch.from_numpy(np.stack([clip.video for clip in clips])),
        "audio": torch.from_numpy(np.stack([clip.audio for clip in clips])),
        "audio_valid": torch.tensor([clip.has_audio for clip in clips]),
        "text": torch.from_numpy(text),
        "text_valid": torch.from_numpy(text.any(-1)),
        "text_key": torch.from_numpy(np.stack([text_key(clip) for clip in clips])),
        "index": torch.tensor([clip.index for clip in clips]),
        "id": [clip.id for clip in clips],
        "captions": [clip.captions for clip in clips],
        "weights": torch.tensor([clip.weights for clip in clips], dtype=torch.float32),
        "start": torch.tensor([clip.start for clip in clips], dtype=torch.float64),
        "skipped": skipped,
    }


def collate_windows(items: Sequence[Clip | Skipped], windows: int) -> dict[str, Any]:
    """Joins clips of several windows each, which follow each other. A clip that lacks a window is skipped once."""
    clips = [items[first : first + windows] for first in range(0, len(items), windows)]
    skipped = [next((item for item in clip if isinstance(item, Skipped)), None) for clip in clips]
    whole = [item for clip, reason in zip(clips, skipped, strict=True) if reason is None for item in clip]
    return collate(whole) | {"skipped": [reason for reason in skipped if reason is not None]}


def text_key(clip: Clip) -> np.ndarray:
    """Hashes of the captions, int64 (P,); 0 without a word.

    Captions of the same words have the same hash; if one of the words is unknown, only those of the same letters.
    """
    keys = np.zeros(len(clip.text), np.int64)
    for p, (words, caption) in enumerate(zip(clip.text, clip.captions, strict=False)):
        if words.any():
            letters = caption.casefold() if (words == UNKNOWN).any() else ""
            digest = hashlib.blake2b(words.tobytes() + letters.encode(), digest_size=8).digest()
            keys[p] = int.from_bytes(digest, "little", signed=True)
    return keys
