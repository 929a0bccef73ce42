"""Which words of a caption are semantically aligned with its video: a test on the model's similarity.

Let s(text, video) be the cosine in the common space of video and text, and drop(w, video) = s(text, video) -
s(text without w, video). If the word w had nothing to do with its video, its own drop would be one like those of other
videos. So w is aligned when its own drop lies so many standard deviations z above their mean that p = 1 - Phi(z), the
upper tail of the normal distribution, is at most 0.05: z of 1.64 or more. A word that suits a share q of the other
videos, as colours do, has z about sqrt((1 - q) / q), and can pass where q is below a quarter; ranks would not let it.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.data.vocabulary import UNKNOWN
from recipes.evaluation import bootstrap
from recipes.figures.gallery.media import Row
from recipes.restore import Restored

THRESHOLD = 0.05  # the largest p-value of an aligned word
FEWEST = 19  # others from which to take a mean and a standard deviation
NOTHING = 1e-9  # a difference of drops that is rounding
RESAMPLES = 1000


class References(NamedTuple):
    """Embeddings (N, D) of windows, and the videos they are from (N,)."""

    embeddings: Tensor
    videos: np.ndarray


@dataclass(frozen=True)
class Caption:
    """A caption in pieces (text, p-value): a word that the vocabulary has, or, with None, what lies between."""

    pieces: list[tuple[str, float | None]]  # joined, their texts are the caption
    references: int  # how many other windows the words were tested against

    @property
    def known(self) -> int:
        """Words that were tested."""
        return sum(p is not None for _, p in self.pieces)

    @property
    def aligned(self) -> int:
        """Words that passed."""
        return sum(is_aligned(p) for _, p in self.pieces)


class Share(NamedTuple):
    """Share of aligned words among the known ones, with a 95% interval; not a number where no word is known."""

    aligned: int
    known: int
    value: float
    low: float
    high: float


def is_aligned(p: float | None) -> bool:
    """Whether a piece of a caption is an aligned word."""
    return p is not None and p <= THRESHOLD


def judge(model: Restored, row: Row, video: Tensor, references: References) -> Caption:
    """Test every word of a clip's caption, given the embedding (D,) of its window, at the cost of one text per word."""
    encoding, limit = model.tokenizer.encode(row.caption), model.config.clip.words
    ids = encoding.ids[:limit]
    text, *without = _embed_texts(model.modules, variants(ids, limit))
    others = references.embeddings[torch.from_numpy(references.videos != row.video)]
    p = p_values(text, torch.stack(without), video, others).tolist() if ids else []
    tested = [(*span, q) for span, word, q in zip(encoding.offsets, ids, p, strict=False) if word != UNKNOWN]
    return Caption(pieces(row.caption, tested), len(others))


@torch.inference_mode()
def embed_video(modules: nn.ModuleDict, window: np.ndarray) -> Tensor:
    """Embedding (D,), in the common space of video and text, of a window, uint8 (T, H, W, 3)."""
    objective = modules["objective"]
    encoded = modules["model"].encode("video", _on_device(window[None], modules))
    return objective.va_to_vt(objective.video_to_va(encoded))[0].float().cpu()


@torch.inference_mode()
def _embed_texts(modules: nn.ModuleDict, ids: np.ndarray) -> Tensor:
    """Embeddings (N, D), in the same space, of texts, word ids int64 (N, W)."""
    encoded = modules["model"].encode("text", _on_device(ids, modules))
    return modules["objective"].text_to_vt(encoded).float().cpu()


def _on_device(array: np.ndarray, modules: nn.ModuleDict) -> Tensor:
    return torch.from_numpy(array).to(next(modules.parameters()).device)


def variants(ids: list[int], limit: int) -> np.ndarray:
    """The caption, then the caption without word w, for each of its W words: int64 (1 + W, limit), padded."""
    texts = [ids, *(ids[:w] + ids[w + 1 :] for w in range(len(ids)))]
    return np.array([text + [0] * (limit - len(text)) for text in texts], np.int64)


def p_values(text: Tensor, without: Tensor, own: Tensor, others: Tensor) -> Tensor:
    """How unusual is the drop of similarity that removing each word causes, among the drops for other videos?

    Args:
        text: Embedding of the caption (D,).
        without: Embeddings of the caption without word w (W, D).
        own: Embedding of the caption's video (D,).
        others: Embeddings of other videos (N, D).

    Returns:
        p-values (W,), float64, in [0, 1]; 1 where there are fewer than `FEWEST` others, where the own drop is not above
        their mean, and where a number is not finite.
    """
    if len(others) < FEWEST:
        return torch.ones(len(without), dtype=torch.float64)
    text, without, own, others = (F.normalize(x.double(), dim=-1) for x in (text, without, own, others))
    change = text - without
    drops = others @ change.T  # (N, W)
    above = change @ own - drops.mean(0)
    p = torch.special.ndtr(-above / drops.std(0))
    return torch.where(above > NOTHING, p, 1.0)  # a comparison with what is not a number is false


def pieces(caption: str, tested: list[tuple[int, int, float]]) -> list[tuple[str, float | None]]:
    """Cut a caption at tested words (start, end, p-value) in order; joined, the pieces are the caption."""
    parts: list[tuple[str, float | None]] = []
    position = 0
    for start, end, p in tested:
        start = max(start, position)  # one letter can be two words after normalisation: ½
        parts += [(caption[position:start], None), (caption[start:end], p)]
        position = max(end, position)
    return [part for part in [*parts, (caption[position:], None)] if part[0]]


def share_aligned(captions: Sequence[Caption], videos: Sequence[str], seed: int) -> Share:
    """The share of aligned words, with a bootstrap interval over whole videos: clips of one are alike."""
    counts = np.array([(c.aligned, c.known) for c in captions], float).reshape(-1, 2)
    aligned, known = counts.sum(0).astype(int).tolist()
    if not known:
        return Share(0, 0, math.nan, math.nan, math.nan)
    passed, tested = bootstrap.sums(counts, np.array(videos), seed, RESAMPLES).T
    low, high = bootstrap.share_interval(passed[tested > 0] / tested[tested > 0], aligned, known)
    return Share(aligned, known, aligned / known, low, high)


def most_aligned(captions: Sequence[Caption], count: int) -> list[tuple[str, int, int]]:
    """The words that are aligned most often: (word in lower case, times aligned, times tested)."""
    tested = [(text.lower(), is_aligned(p)) for caption in captions for text, p in caption.pieces if p is not None]
    times = Counter(word for word, _ in tested)
    aligned = Counter(word for word, passed in tested if passed)
    return [(word, number, times[word]) for word, number in aligned.most_common(count)]
