"""Captions with their aligned words, and the share of aligned words in a group."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recipes.figures.gallery.alignment import THRESHOLD, known, p_values, variants, words
from recipes.figures.gallery.sample import Row
from recipes.figures.gallery.space import Space

RESAMPLES = 1000


@dataclass(frozen=True)
class References:
    """Embeddings (N, D) of windows, and the videos they are from (N,)."""

    embeddings: Tensor
    videos: np.ndarray

    def others(self, video: str) -> Tensor:
        """The embeddings that are not from a video."""
        return self.embeddings[torch.from_numpy(self.videos != video)]


@dataclass(frozen=True)
class Caption:
    """A caption in pieces (text, p-value): a word that the vocabulary has, or, with None, what lies between."""

    pieces: list[tuple[str, float | None]]
    references: int

    @property
    def known(self) -> int:
        """Words that were tested."""
        return sum(p is not None for _, p in self.pieces)

    @property
    def aligned(self) -> int:
        """Words that passed."""
        return sum(is_aligned(p) for _, p in self.pieces)


@dataclass(frozen=True)
class Share:
    """Share of aligned words among the known ones, with a 95% interval; not a number where no word is known."""

    aligned: int
    known: int
    value: float
    low: float
    high: float


def is_aligned(p: float | None) -> bool:
    """Whether a piece of a caption is an aligned word."""
    return p is not None and p <= THRESHOLD


def judge(space: Space, rows: Sequence[Row], videos: Tensor, references: References) -> list[Caption]:
    """Test every word of the captions of B clips; it costs the encoding of one text per word.

    Args:
        space: The model.
        rows: The clips.
        videos: Embeddings of their windows (B, D).
        references: Of other videos.

    Returns:
        B captions.
    """
    limit = space.config.clip.words
    found = [words(space.tokenizer, row.caption, limit) for row in rows]
    ids = [variants(caption, limit) for caption in found]
    texts = space.texts(np.concatenate(ids)).split([len(part) for part in ids])
    judged = []
    for row, caption, (text, *without), video in zip(rows, found, texts, videos, strict=True):
        others = references.others(row.video)
        p = p_values(text, torch.stack(without), video, others).tolist() if without else []
        spans = [(w.start, w.end, q) for w, q, there in zip(caption, p, known(caption), strict=True) if there]
        judged.append(Caption(pieces(row.caption, spans), len(others)))
    return judged


def pieces(caption: str, spans: list[tuple[int, int, float]]) -> list[tuple[str, float | None]]:
    """Cut a caption at spans (start, end, p-value) in order; joined, the pieces are the caption."""
    parts: list[tuple[str, float | None]] = []
    position = 0
    for start, end, p in spans:
        start = max(start, position)  # one letter can be two words after normalisation: ½
        parts += [(caption[position:start], None), (caption[start:end], p)]
        position = max(end, position)
    return [part for part in [*parts, (caption[position:], None)] if part[0]]


def share_aligned(captions: Sequence[Caption], videos: Sequence[str], seed: int) -> Share:
    """The share of aligned words, with a bootstrap interval over whole videos: clips of one are alike.

    Args:
        captions: Judged captions (N,).
        videos: Which video each is from (N,).
        seed: Of the bootstrap.
    """
    aligned, tested = (np.array([getattr(c, name) for c in captions], float) for name in ("aligned", "known"))
    total, passed = int(tested.sum()), int(aligned.sum())
    if not total:
        return Share(0, 0, math.nan, math.nan, math.nan)
    names, video = np.unique(np.array(videos), return_inverse=True)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    passes, tests = (draws @ np.bincount(video, weights=x) for x in (aligned, tested))
    low, high = np.quantile(passes[tests > 0] / tests[tests > 0], [0.025, 0.975])
    return Share(passed, total, passed / total, float(low), float(high))


def most_aligned(captions: Sequence[Caption], count: int) -> list[tuple[str, int, int]]:
    """The words that are aligned most often: (word in lower case, times aligned, times tested)."""
    tested = [(text.lower(), is_aligned(p)) for caption in captions for text, p in caption.pieces if p is not None]
    times = Counter(word for word, _ in tested)
    aligned = Counter(word for word, passed in tested if passed)
    return [(word, number, times[word]) for word, number in aligned.most_common(count)]
