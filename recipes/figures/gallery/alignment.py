"""Which words of a caption are semantically aligned with its video: a test on the model's similarity.

Let s(text, video) be the cosine in the common space of video and text, and drop(w, video) = s(text, video) -
s(text without w, video). If the word w had nothing to do with its video, its own drop would be one like those of other
videos. So w is aligned when its own drop lies so many standard deviations z above their mean that p = 1 - Phi(z), the
upper tail of the normal distribution, is at most 0.05: z of 1.64 or more. A word that suits a share q of the other
videos, as colours do, has z about sqrt((1 - q) / q), and can pass where q is below a quarter; ranks would not let it.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from recipes.data.vocabulary import UNKNOWN

THRESHOLD = 0.05  # the largest p-value of an aligned word
FEWEST = 19  # others from which to take a mean and a standard deviation
NOTHING = 1e-9  # a difference of drops that is rounding


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


def known(caption: list[Word]) -> list[bool]:
    """Whether each word is in the vocabulary; one that is not cannot be aligned."""
    return [word.token != UNKNOWN for word in caption]
