"""Video, sound, words and features as tokens with positions: the only part of the model that knows modalities."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class VideoTokens(nn.Module):
    """Patches of t x h x w pixels; positions are the sum of a temporal, a vertical and a horizontal table."""

    def __init__(
        self, frames: int, size: int, patch: tuple[int, int, int], width: int, position_norm: bool = False
    ) -> None:
        super().__init__()
        self.patch = patch
        t, h, w = frames // patch[0], size // patch[1], size // patch[2]
        self.patches = nn.Linear(3 * patch[0] * patch[1] * patch[2], width)
        self.project = nn.Linear(width, width)
        self.time, self.row, self.column = (table(n, width) for n in (t, h, w))
        self.position_norm = norm_of(position_norm, width)

    def forward(self, video: Tensor) -> Tensor:
        """Video, uint8 (b, t, h, w, 3) -> tokens (b, n, d)."""
        t, h, w = self.patch
        pixels = video.to(self.patches.weight.dtype) / 127.5 - 1
        x = rearrange(pixels, "b (nt t) (nh h) (nw w) c -> b nt nh nw (t h w c)", t=t, h=h, w=w)
        x = F.gelu(self.project(self.patches(x)))
        positions = self.position_norm(self.time[:, None, None] + self.row[:, None] + self.column)
        return rearrange(x + positions, "b nt nh nw d -> b (nt nh nw) d")


class FeatureTokens(nn.Module):
    """Feature vectors, projected, with one position table: for video and audio alike."""

    def __init__(self, length: int, features: int, width: int, position_norm: bool = False) -> None:
        super().__init__()
        self.patches = nn.Linear(features, width)
        self.project = nn.Linear(width, width)
        self.time = table(length, width)
        self.position_norm = norm_of(position_norm, width)

    def forward(self, features: Tensor) -> Tensor:
        """Features (b, t, c) -> tokens (b, t, d)."""
        return F.gelu(self.project(self.patches(features))) + self.position_norm(self.time)


class AudioTokens(FeatureTokens):
    """The raw waveform, whose features are stretches of it."""

    def __init__(self, samples: int, patch: int, width: int, position_norm: bool = False) -> None:
        super().__init__(samples // patch, patch, width, position_norm)
        self.patch = patch

    def forward(self, audio: Tensor) -> Tensor:
        """Waveform in [-1, 1], (b, s) -> tokens (b, n, d)."""
        return super().forward(rearrange(audio, "b (n s) -> b n s", s=self.patch))


class TextTokens(nn.Module):
    """Word vectors, projected, with one position table. Word 0 is padding."""

    def __init__(self, vocabulary: int, words: int, width: int, word_width: int, position_norm: bool = False) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, word_width, padding_idx=0)
        self.project = nn.Linear(word_width, width)
        self.time = table(words, width)
        self.position_norm = norm_of(position_norm, width)

    def forward(self, text: Tensor) -> Tensor:
        """Word ids (b, w) -> tokens (b, w, d)."""
        return F.gelu(self.project(self.words(text))) + self.position_norm(self.time[: text.shape[1]])


def table(length: int, width: int) -> nn.Parameter:
    """A learned position table (length, width)."""
    return nn.Parameter(torch.randn(length, width) * 0.02)


def norm_of(position_norm: bool, width: int) -> nn.Module:
    """The norm of positions before they are added."""
    return nn.LayerNorm(width, eps=1e-6) if position_norm else nn.Identity()


def drop_tokens(tokens: Tensor, rate: float) -> Tensor:
    """DropToken: keep a random subset of each sample's tokens (b, n, d) -> (b, round(n (1 - rate)), d), at least one.

    References:
        Akbari et al., VATT, 2021 (arXiv:2104.11178), section 3.3. There the subset is one for the batch; here each
        sample draws its own, so that a sample's gradient does not depend on its neighbours.
    """
    b, n, d = tokens.shape
    keep = max(round(n * (1 - rate)), 1)
    order = torch.rand(b, n, device=tokens.device).argsort(dim=1)[:, :keep]
    return tokens.gather(1, order[..., None].expand(b, keep, d))
