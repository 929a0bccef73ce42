"""Workloads of models of `transformers`, unchanged, with random weights: nothing is downloaded."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from recipes.research.benchmark.workloads.pictures import ClassAndContrast, labels, picture_side
from recipes.research.benchmark.workloads.workload import Batch, Spec, Workload, WorkloadError

VIT_PATCH = 16
MEL_BINS = 80  # of Whisper's spectrogram
WHISPER_STRIDE = 2  # of its second convolution: frames of sound per token


class Tokens(nn.Module):
    """A model of `transformers`; one of its tokens, the mean of all, and the labels passed through."""

    def __init__(self, model: nn.Module, place: int = 0) -> None:
        """Wrap a model; ``place`` is the token that stands for the sequence, -1 where each sees those before it."""
        super().__init__()
        self.model, self.place = model, place

    def forward(self, label: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        """Inputs of the model -> {"one": (b, d), "other": (b, d), "label": (b,)}."""
        hidden = self.model(**inputs).last_hidden_state
        return {"one": hidden[:, self.place], "other": hidden.mean(1), "label": label}


def bert(spec: Spec) -> Workload:
    """BERT's encoder on random words."""
    transformers = _transformers()
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = transformers.BertConfig(max_position_embeddings=max(spec.tokens, 512), **no_dropout, **_sizes(spec))
    model = transformers.BertModel(config, add_pooling_layer=False)
    last = f"model.encoder.layer.{spec.layers - 1}."
    parts = {"last block": last, "last projection": f"{last}output.dense."}
    return Workload(spec, Tokens(model), ClassAndContrast(spec.width), _words(spec, config.vocab_size), parts=parts)


def llama(spec: Spec) -> Workload:
    """Llama's decoder on random words: rotary positions, RMS norms, gated MLPs, half as many heads of keys."""
    transformers = _transformers()
    config = transformers.LlamaConfig(
        num_key_value_heads=max(spec.heads // 2, 1),
        max_position_embeddings=max(spec.tokens, 512),
        use_cache=False,
        **_sizes(spec),
    )
    model = Tokens(transformers.LlamaModel(config), place=-1)
    last = f"model.layers.{spec.layers - 1}."
    parts = {"last block": last, "last projection": f"{last}mlp.down_proj."}
    return Workload(spec, model, ClassAndContrast(spec.width), _words(spec, config.vocab_size), parts=parts)


def vit(spec: Spec) -> Workload:
    """The vision transformer on pictures of ``tokens`` patches."""
    transformers = _transformers()
    side = picture_side(spec, VIT_PATCH)
    config = transformers.ViTConfig(image_size=side, patch_size=VIT_PATCH, **_sizes(spec))

    def draw(size: int) -> Batch:
        return {"pixel_values": torch.randn(size, 3, side, side), "label": labels(size)}

    model = transformers.ViTModel(config, add_pooling_layer=False)
    last = f"model.layers.{spec.layers - 1}."
    parts = {"last block": last, "last projection": f"{last}mlp.fc2."}
    return Workload(spec, Tokens(model), ClassAndContrast(spec.width), draw, parts=parts)


def whisper(spec: Spec) -> Workload:
    """Whisper: an encoder of ``tokens`` tokens of sound, two convolutions first, and a decoder of an eighth."""
    transformers = _transformers()
    words = max(spec.tokens // 8, 1)
    sizes = {f"{part}_{key}": n for part in ("encoder", "decoder") for key, n in _layers(spec).items()}
    config = transformers.WhisperConfig(
        d_model=spec.width,
        num_mel_bins=MEL_BINS,
        max_source_positions=spec.tokens,
        max_target_positions=words,
        use_cache=False,
        **sizes,
    )

    def draw(size: int) -> Batch:
        return {
            "input_features": torch.randn(size, MEL_BINS, WHISPER_STRIDE * spec.tokens),
            "decoder_input_ids": torch.randint(0, config.vocab_size, (size, words)),
            "label": labels(size),
        }

    last = f"model.decoder.layers.{spec.layers - 1}."
    parts = {"last block": last, "last projection": f"{last}fc2."}
    model = Tokens(transformers.WhisperModel(config), place=-1)
    return Workload(spec, model, ClassAndContrast(spec.width), draw, parts=parts)


def _words(spec: Spec, vocabulary: int) -> Callable[[int], Batch]:
    def draw(size: int) -> Batch:
        return {"input_ids": torch.randint(0, vocabulary, (size, spec.tokens)), "label": labels(size)}

    return draw


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise WorkloadError(
            "the workloads bert, vit, llama and whisper need the package transformers: pip install transformers "
            "(nothing is downloaded, the weights are random)"
        ) from None
    return transformers


def _sizes(spec: Spec) -> dict[str, int]:
    return {
        "hidden_size": spec.width,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "intermediate_size": 4 * spec.width,
    }


def _layers(spec: Spec) -> dict[str, int]:
    return {"layers": spec.layers, "attention_heads": spec.heads, "ffn_dim": 4 * spec.width}
