"""What the step is taken on: an encoder, its losses and random batches, of a size that can be swept."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import harmony
from recipes.config import ClipFormat
from recipes.model.transformer import Transformer

Batch = dict[str, Tensor]
FEATURES = 128  # raw features per token
CLASSES = 10
VIT_PATCH = 16
WORDS = 200  # of the demo workload's vocabulary
BACKBONE = "backbone"  # of the demo's model: the Gram is over its parameters
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class WorkloadError(ValueError):
    """A workload that cannot be built: a size that does not fit, or a package that is not installed."""


@dataclass(frozen=True)
class Spec:
    """One point of a sweep, named as the keys of the suite; all of it fits into JSON.

    `tokens` are those of the longest sequence. If `compiled`, the encoder goes through `torch.compile`.
    """

    workload: str = "reference"
    batch: int = 32
    tokens: int = 128
    width: int = 256
    layers: int = 4
    heads: int = 4
    symmetric: bool = False
    device: str = "cpu"
    dtype: str = "float32"
    compiled: bool = False
    chunk: int = 8

    @property
    def point(self) -> "Spec":
        """The spec without what tells apart contestants of one point."""
        return replace(self, compiled=False)


class Workload:
    """A model on its device, called by all contestants in the same way.

    Attributes:
        model: The encoder, called as ``model(**batch)``; returns a dictionary of embeddings.
        objective: The losses stage with its heads; embeddings -> {name: terms (B,)}.
        draw: Number of samples -> a fresh random batch, a dictionary of tensors with leading axis B.
        wrt: Names of the parameters the Gram is taken over, those of the part ``watched``; None for all.
        params, loss_params: Trainable parameters of the encoder, and of the losses stage, by name.
    """

    def __init__(
        self, spec: Spec, model: nn.Module, objective: nn.Module, draw: Callable[[int], Batch], watched: str = ""
    ) -> None:
        self.spec = spec
        self.model = model.to(spec.device)
        self.objective = objective.to(spec.device)
        self.draw = lambda size: {name: x.to(spec.device) for name, x in draw(size).items()}
        self.watched = watched
        self.wrt = (lambda name: name.startswith(f"{watched}.")) if watched else None
        self.params = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.loss_params = dict(objective.named_parameters())
        self.forward, self.encode = self._forward, self._encode
        if spec.compiled:
            torch.compiler.reset()  # what was compiled for another size counts towards a limit
            self.forward = torch.compile(self._forward, dynamic=False)
            self.encode = torch.compile(self._encode, dynamic=False)

    def precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.spec.device, DTYPES[self.spec.dtype], enabled=self.spec.dtype != "float32")

    def _forward(self, batch: Batch) -> dict[str, Tensor]:
        with self.precision():
            return self.model(**batch)

    def _encode(self, params: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        with self.precision():
            return functional_call(self.model, params, kwargs=batch)

    def losses(self, loss_params: dict[str, Tensor], embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses stage as a pure function."""
        with self.precision():
            return functional_call(self.objective, loss_params, (embeddings,))

    def total(self, embeddings: dict[str, Tensor]) -> Tensor:
        """The sum of the mean losses, as plain training minimises it."""
        with self.precision():
            terms = self.objective(embeddings)
        return torch.stack([term.mean() for term in terms.values()]).sum()


def build(spec: Spec) -> Workload:
    """The workload of a spec, with the same random weights every time."""
    if spec.width % spec.heads:
        raise WorkloadError(f"width {spec.width} is not a multiple of {spec.heads} heads: choose width= or heads=")
    torch.manual_seed(0)
    return WORKLOADS[spec.workload](spec)


def default(workload: str) -> Spec:
    """The point at which a workload is measured if nothing else is asked for."""
    if workload != "demo":
        return Spec(workload, tokens=64) if workload == "vit" else Spec(workload)
    from recipes import config as configuration
    from recipes.model.vatt import SIZES

    size = SIZES[configuration.load(configuration.DEMO).model.size]
    return Spec("demo", tokens=80, width=size.width, layers=size.layers, heads=size.heads)


# ---------------------------------------------------------------------------------------------------------- reference
class SharedBackbone(nn.Module):
    """Raw features of three modalities, a projection each, through one transformer; mean over the tokens."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.project = nn.ModuleDict({m: nn.Linear(FEATURES, spec.width) for m in ("video", "audio", "text")})
        self.backbone = Transformer(spec.layers, spec.width, 4 * spec.width, spec.heads, dropout=0.0)

    def forward(self, **modalities: Tensor) -> dict[str, Tensor]:
        """{modality: features (b, n, FEATURES)} -> {modality: representation (b, d)}."""
        return {m: self.backbone(self.project[m](x)).mean(1) for m, x in modalities.items()}


class TwoContrasts(nn.Module):
    """A two-layer head a modality, and InfoNCE of video with audio and with text."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({m: _head(spec.width, spec.width) for m in ("video", "audio", "text")})
        self.keywords = {"temperature": 0.1, "symmetric": spec.symmetric}

    def forward(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """Representations (b, d) -> two losses of terms (b,)."""
        video, audio, text = (self.heads[m](embeddings[m]) for m in ("video", "audio", "text"))
        return {
            "va": harmony.losses.info_nce(video, audio, **self.keywords),
            "vt": harmony.losses.info_nce(video, text, **self.keywords),
        }


def _reference(spec: Spec) -> Workload:
    lengths = {"video": spec.tokens, "audio": spec.tokens // 2, "text": max(spec.tokens // 8, 1)}

    def draw(size: int) -> Batch:
        return {m: torch.randn(size, n, FEATURES) for m, n in lengths.items()}

    return Workload(spec, SharedBackbone(spec), TwoContrasts(spec), draw)


# --------------------------------------------------------------------------------------------------------------- demo
def _demo(spec: Spec) -> Workload:
    """Model and objective of recipes/configs/demo.yaml on random clips; the Gram over its backbone, as there."""
    from recipes import config as configuration
    from recipes.data import vocabulary
    from recipes.model.build import build as build_trimodal

    config = configuration.load(configuration.DEMO)
    tokenizer = vocabulary.build(f"word{i}" for i in range(WORDS))
    modules, words = build_trimodal(config, tokenizer), tokenizer.get_vocab_size()
    return Workload(
        spec, modules["model"], modules["objective"], lambda size: random_clips(config.clip, words, size), BACKBONE
    )


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


# ------------------------------------------------------------------------------------------------------- transformers
class Tokens(nn.Module):
    """A model of `transformers`, unchanged; its first token, the mean of its tokens, and the labels passed through."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, label: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        """Inputs of the model -> {"first": (b, d), "mean": (b, d), "label": (b,)}."""
        hidden = self.model(**inputs).last_hidden_state
        return {"first": hidden[:, 0], "mean": hidden.mean(1), "label": label}


class ClassAndContrast(nn.Module):
    """Two losses on the first token: its class, and telling its own sequence's mean from others."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classify, self.query, self.key = _head(width, CLASSES), _head(width, width), _head(width, width)

    def forward(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """Embeddings of `Tokens` -> two losses of terms (b,)."""
        first, mean = embeddings["first"], embeddings["mean"]
        return {
            "class": F.cross_entropy(self.classify(first), embeddings["label"], reduction="none"),
            "contrast": harmony.losses.info_nce(self.query(first), self.key(mean), temperature=0.1),
        }


def _bert(spec: Spec) -> Workload:
    transformers = _transformers()
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    longest = max(spec.tokens, 512)
    config = transformers.BertConfig(max_position_embeddings=longest, **no_dropout, **_sizes(spec))
    model = transformers.BertModel(config, add_pooling_layer=False)

    def draw(size: int) -> Batch:
        return {"input_ids": torch.randint(0, config.vocab_size, (size, spec.tokens)), "label": _labels(size)}

    return Workload(spec, Tokens(model), ClassAndContrast(spec.width), draw)


def _vit(spec: Spec) -> Workload:
    transformers = _transformers()
    side = math.isqrt(spec.tokens) * VIT_PATCH
    if side**2 != spec.tokens * VIT_PATCH**2:
        raise WorkloadError(
            f"a picture has a square number of patches; tokens={spec.tokens} is none (64, 144, 196, 256)"
        )
    config = transformers.ViTConfig(image_size=side, patch_size=VIT_PATCH, **_sizes(spec))

    def draw(size: int) -> Batch:
        return {"pixel_values": torch.randn(size, 3, side, side), "label": _labels(size)}

    model = transformers.ViTModel(config, add_pooling_layer=False)
    return Workload(spec, Tokens(model), ClassAndContrast(spec.width), draw)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise WorkloadError(
            "the workloads bert and vit need the package transformers: pip install transformers (nothing is "
            "downloaded, the weights are random)"
        ) from None
    return transformers


def _sizes(spec: Spec) -> dict[str, int]:
    return {
        "hidden_size": spec.width,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "intermediate_size": 4 * spec.width,
    }


def _labels(size: int) -> Tensor:
    return torch.randint(0, CLASSES, (size,))


def _head(width: int, output: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, output))


WORKLOADS: dict[str, Callable[[Spec], Workload]] = {
    "reference": _reference,
    "demo": _demo,
    "bert": _bert,
    "vit": _vit,
}
