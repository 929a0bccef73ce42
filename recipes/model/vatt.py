"""VATT, modality-agnostic: three tokenizers, one transformer, three projections."""

import re
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from recipes.config import ClipFormat, ModelConfig
from recipes.data.layouts import youtube8m
from recipes.model.tokens import AudioTokens, FeatureTokens, TextTokens, VideoTokens, drop_tokens
from recipes.model.transformer import Transformer

MODALITIES = ("video", "audio", "text")


class Size(NamedTuple):
    """Dimensions of the shared transformer, and of its output."""

    layers: int
    width: int
    mlp: int
    heads: int
    output: int


PARTS = {  # the first pattern in a parameter's name says to which part it belongs; positions are what is left
    "transformer": r"^(backbone|aggregate)\.",
    "words": r"words\.weight$",
    "patches": r"^tokens\.text\.project|\.patches\.",
    "projections": r"^output\.|\.project\.",
}
SIZES = {
    "demo": Size(layers=2, width=96, mlp=192, heads=3, output=96),
    "small": Size(layers=6, width=512, mlp=2048, heads=8, output=1024),
    "base": Size(layers=12, width=768, mlp=3072, heads=12, output=1024),
    "medium": Size(layers=12, width=1024, mlp=4096, heads=16, output=1024),
    "large": Size(layers=24, width=1024, mlp=4096, heads=16, output=1024),
}


class VATT(nn.Module):
    """One shared transformer for video, audio and text, from raw pixels, raw waveform and word ids.

    References:
        Akbari et al., VATT, 2021 (arXiv:2104.11178), section 3; sizes from its table 6.
    """

    def __init__(self, config: ModelConfig, clip: ClipFormat, vocabulary: int, vectors: Tensor | None = None) -> None:
        """Build the model for so many words; if their vectors (vocabulary, word_width) are given, they are frozen."""
        super().__init__()
        size = SIZES[config.size]
        word_width = config.word_width if vectors is None else vectors.shape[1]
        self.drop_token = config.drop_token
        if clip.inputs == "features":
            video, audio = (FeatureTokens(clip.frames, n, size.width) for n in (youtube8m.RGB, youtube8m.AUDIO))
        else:
            video = VideoTokens(clip.frames, clip.size, config.video_patch, size.width, config.position_norm)
            audio = AudioTokens(clip.samples, config.audio_patch, size.width, config.position_norm)
        text = TextTokens(vocabulary, clip.words, size.width, word_width, config.position_norm)
        self.tokens = nn.ModuleDict({"video": video, "audio": audio, "text": text})
        self.aggregate = nn.ParameterDict({m: nn.Parameter(torch.randn(size.width) * 0.02) for m in MODALITIES})
        self.backbone = Transformer(size.layers, size.width, size.mlp, size.heads, config.dropout, config.checkpoint)
        self.output = nn.ModuleDict({m: nn.Linear(size.width, size.output) for m in MODALITIES})
        self.apply(_initialize)
        if vectors is not None:
            self.tokens["text"].words.weight = nn.Parameter(vectors.clone(), requires_grad=False)

    def forward(
        self,
        video: Tensor,
        audio: Tensor,
        text: Tensor,
        audio_valid: Tensor,
        text_valid: Tensor,
        text_key: Tensor,
        index: Tensor,
        weights: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Representations before the heads; the masks and what comes after them pass through to the losses.

        Args:
            video: uint8 (b, t, h, w, 3), or features (b, t, 1024).
            audio: float (b, s), or features (b, t, 128).
            text: Word ids (b, p, w), 0 is padding.
            audio_valid: (b,) whether there is sound.
            text_valid: (b, p) whether there is a caption.
            text_key: (b, p), equal where captions are, see `recipes.data.clips.collate`.
            index: (b,), which clip of its data set each is.
            weights: (b, 2) how far sound and text are to be trusted.
        """
        captions = self.encode("text", rearrange(text, "b p w -> (b p) w"))
        encoded = {"video": self.encode("video", video), "audio": self.encode("audio", audio)}
        encoded["text"] = rearrange(captions, "(b p) d -> b p d", b=len(text))
        passed = {"audio_valid": audio_valid, "text_valid": text_valid, "text_key": text_key, "index": index}
        return encoded | passed | ({} if weights is None else {"weights": weights})

    def encode(self, modality: str, raw: Tensor) -> Tensor:
        """Representation (b, d) of one modality: the output at its AGG token."""
        tokens = self.tokens[modality](raw)
        mask = None
        if modality == "text":
            mask = F.pad(raw != 0, (1, 0), value=True)
        elif self.training and self.drop_token > 0:
            tokens = drop_tokens(tokens, self.drop_token)
        first = repeat(self.aggregate[modality], "d -> b 1 d", b=len(tokens))
        encoded = self.backbone(torch.cat([first, tokens], dim=1), mask)
        return F.gelu(self.output[modality](encoded[:, 0]))


def parameter_counts(model: VATT) -> dict[str, int]:
    """Number of parameters, part by part.

    "table" is the sum of what VATT's table 6 lists (transformer, patch projections, positions), and agrees with it
    within 3%. Word vectors, which VATT freezes, and the other projections come on top.
    """
    parts = dict.fromkeys(("transformer", "patches", "positions", "words", "projections"), 0)
    for name, p in model.named_parameters():
        parts[next((part for part, pattern in PARTS.items() if re.search(pattern, name)), "positions")] += p.numel()
    parts["table"] = parts["transformer"] + parts["patches"] + parts["positions"]
    return parts


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
