"""Which words of a caption are semantically aligned with its video: a permutation test on the model's similarity.

Let s(text, video) be the cosine in the common space of video and text, and drop(w, video) = s(text, video) -
s(text without w, video). If the word w had nothing to do with its video, its own drop would be one like those of other
videos; so w is aligned when its p-value (1 + #{others: drop >= own drop}) / (1 + #others) is at most 0.05.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from recipes.data.vocabulary import UNKNOWN

THRESHOLD = 0.05  # the largest p-value of an aligned word
FEWEST = 19  # others with which a p-value can be as small as the threshold


@dataclass(frozen=True)
class Word:
    """A word of a caption: its place among the caption's letters, and its id."""

    start: int
    end: int
    token: int


def words(tokenizer: Tokenizer, caption: str, limit: int) -> list[Word]:
    """The words of a caption that the model reads: the first `limit`, in the vocabulary's own tokenization."""
    encoding = tokenizer.encode(caption)
    found = [Word(start, end, token) for (start, end), token in zip(encoding.offsets, encoding.ids, strict=True)]
    return found[:limit]


def variants(caption: list[Word], limit: int) -> np.ndarray:
    """The texts that the test compares.

    Args:
        caption: W words.
        limit: Length to pad to, at least W.

    Returns:
        Word ids, int64 (1 + W, limit): the caption, then the caption without word w, for each w. The one variant of a
        caption of one word is the empty text.
    """
    ids = [word.token for word in caption]
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
        p-values (W,), float64, in [1 / (1 + N), 1].
    """
    text, without, own, others = (F.normalize(x.double(), dim=-1) for x in (text, without, own, others))
    videos = torch.cat([own[None], others])
    # Products are summed, not multiplied as matrices, so that equal videos have equal drops to the last digit.
    drops = (videos[:, None] * (text - without)).sum(-1)  # (1 + N, W)
    return (1 + (~(drops[1:] < drops[0])).sum(0)).double() / (1 + len(others))  # what is not finite counts against w


def chance(others: int) -> float:
    """The share of words that pass by chance among so many others: the threshold, or a little less."""
    return sum(k / (1 + others) <= THRESHOLD for k in range(1, 2 + others)) / (1 + others)


def known(caption: list[Word]) -> list[bool]:
    """Whether each word is in the vocabulary; one that is not cannot be aligned."""
    return [word.token != UNKNOWN for word in caption]
