"""Workloads of three modalities that share a transformer: the reference, VATT's sizes, adapters, experts, the demo."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

import harmony
from recipes.config import ClipFormat
from recipes.model.transformer import Transformer
from recipes.research.benchmark.workloads.layers import Adapted, Experts, head
from recipes.research.benchmark.workloads.workload import Batch, Spec, Workload

MODALITIES = ("video", "audio", "text")
FEATURES = dict.fromkeys(MODALITIES, 128)  # raw features per token
PATCHES = {"video": 3072, "audio": 128, "text": 300}  # numbers in a token of VATT
VATT_SMALL = {"tokens": 784, "width": 512, "layers": 6, "heads": 8}  # tokens after DropToken of one half
VATT_MEDIUM = {"tokens": 784, "width": 1024, "layers": 12, "heads": 16}
PAIRS = (("video", "audio"), ("video", "text"))
WORDS = 200  # of the demo workload's vocabulary
BACKBONE = "backbone"
EXPERTS, RANK = 4, 8


class SharedBackbone(nn.Module):
    """Raw features of three modalities, a projection each, through one transformer; mean over the tokens."""

    def __init__(self, spec: Spec, features: Mapping[str, int] = FEATURES) -> None:
        super().__init__()
        self.project = nn.ModuleDict({m: nn.Linear(features[m], spec.width) for m in MODALITIES})
        self.backbone = Transformer(spec.layers, spec.width, 4 * spec.width, spec.heads, dropout=0.0)

    def forward(self, **modalities: Tensor) -> dict[str, Tensor]:
        """{modality: features (b, n, f)} -> {modality: representation (b, d)}."""
        return {m: self.backbone(self.project[m](x)).mean(1) for m, x in modalities.items()}


class Contrasts(nn.Module):
    """InfoNCE of video with audio and with text in turn; a two-layer head a modality, new ones for every two losses."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.heads = nn.ModuleList()
        for first in range(0, spec.losses, len(PAIRS)):
            reached = dict.fromkeys(m for pair in PAIRS[: spec.losses - first] for m in pair)
            self.heads.append(nn.ModuleDict({m: head(spec.width, spec.width) for m in reached}))
        self.losses = spec.losses
        self.keywords = {"temperature": 0.1, "symmetric": spec.symmetric}

    def forward(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """Representations (b, d) -> K losses of terms (b,)."""
        shared = [{m: own(embeddings[m]) for m, own in heads.items()} for heads in self.heads]
        terms = {}
        for number in range(self.losses):
            (first, second), side = PAIRS[number % len(PAIRS)], shared[number // len(PAIRS)]
            name = f"{first[0]}{second[0]}{number // len(PAIRS) or ''}"
            terms[name] = harmony.losses.info_nce(side[first], side[second], **self.keywords)
        return terms


def reference(spec: Spec) -> Workload:
    """The workload that claims are made on: all parameters count."""
    draw = _draw(spec, _lengths(spec), FEATURES)
    return Workload(spec, SharedBackbone(spec), Contrasts(spec), draw, parts=_parts(spec))


def vatt(spec: Spec) -> Workload:
    """VATT's tokens: of 784, 784 are video, 600 sound and 16 text. The Gram is over the backbone."""
    lengths = {"video": spec.tokens, "audio": -(-spec.tokens * 600 // 784), "text": min(spec.tokens, 16)}
    draw = _draw(spec, lengths, PATCHES)
    return Workload(spec, SharedBackbone(spec, PATCHES), Contrasts(spec), draw, BACKBONE, _parts(spec))


def lora(spec: Spec) -> Workload:
    """The reference, frozen, with low-rank adapters on all matrices of its layers: they alone are trained."""
    model = SharedBackbone(spec).requires_grad_(False)
    for layer in model.backbone.layers:
        layer.qkv, layer.out = Adapted(layer.qkv, RANK), Adapted(layer.out, RANK)
        layer.mlp[0], layer.mlp[2] = Adapted(layer.mlp[0], RANK), Adapted(layer.mlp[2], RANK)
    return Workload(spec, model, Contrasts(spec), _draw(spec, _lengths(spec), FEATURES), parts=_parts(spec))


def moe(spec: Spec) -> Workload:
    """The reference with a mixture of experts in place of every MLP: each token goes to one of them."""
    model = SharedBackbone(spec)
    for layer in model.backbone.layers:
        layer.mlp = Experts(spec.width, EXPERTS)
    parts = {"last block": _parts(spec)["last block"]}
    return Workload(spec, model, Contrasts(spec), _draw(spec, _lengths(spec), FEATURES), parts=parts)


def _lengths(spec: Spec) -> dict[str, int]:
    return {"video": spec.tokens, "audio": spec.tokens // 2, "text": max(spec.tokens // 8, 1)}


def _draw(spec: Spec, lengths: Mapping[str, int], features: Mapping[str, int]) -> Callable[[int], Batch]:
    def draw(size: int) -> Batch:
        return {m: torch.randn(size, n, features[m], device=spec.device) for m, n in lengths.items()}

    return draw


def _parts(spec: Spec) -> dict[str, str]:
    last = f"{BACKBONE}.layers.{spec.layers - 1}."
    return {"last block": last, "last projection": f"{last}mlp.2."}


# --------------------------------------------------------------------------------------------------------------- demo
def demo(spec: Spec) -> Workload:
    """Model and objective of recipes/configs/demo.yaml on random clips; the Gram over its backbone, as there."""
    from recipes import config as configuration
    from recipes.data import vocabulary
    from recipes.model.build import build as build_trimodal

    config = configuration.load(configuration.DEMO)
    tokenizer = vocabulary.build(f"word{i}" for i in range(WORDS))
    modules, words = build_trimodal(config, tokenizer), tokenizer.get_vocab_size()
    draw = lambda size: random_clips(config.clip, words, size)  # noqa: E731
    return Workload(spec, modules["model"], modules["objective"], draw, BACKBONE, _parts(spec))


def demo_sizes() -> dict[str, int]:
    """What the demo is made of, as the keys of a spec."""
    from recipes import config as configuration
    from recipes.model.vatt import SIZES

    size = SIZES[configuration.load(configuration.DEMO).model.size]
    return {"tokens": 80, "width": size.width, "layers": size.layers, "heads": size.heads}


def random_clips(clip: ClipFormat, words: int, size: int) -> dict[str, Tensor]:
    """A batch of ``size`` clips of noise and of words below ``words``; nothing is missing."""
    return {
        "video": torch.randint(0, 256, (size, clip.frames, clip.size, clip.size, 3), dtype=torch.uint8),
        "audio": torch.rand(size, clip.samples) * 2 - 1,
        "text": torch.randint(1, words, (size, clip.narrations, clip.words)),
        "audio_valid": torch.ones(size, dtype=torch.bool),
        "text_valid": torch.ones(size, clip.narrations, dtype=torch.bool),
        "text_key": 1 + torch.arange(size * clip.narrations).view(size, -1),
        "index": torch.arange(size),
    }
