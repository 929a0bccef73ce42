"""Architectures of transformers for sound and series, and pairs of towers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers as t

from tests.harmony.third_party.architecture import (
    B,
    halves,
    normal,
    of,
    whole,
    words,
)
from tests.harmony.third_party.transformers_recipe import (
    BART,
    SPECIAL,
    WIDTH,
    Recipe,
    image,
    pixels,
    pooled,
    rows,
    sequences,
    text,
    towers,
    transformer,
)

SPEECH = {
    "conv_dim": (8, 8),
    "conv_kernel": (4, 3),
    "conv_stride": (2, 2),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.0,
    "apply_spec_augment": False,
}


def speech(cls: Any, config: Any) -> Recipe:
    """Waveforms."""
    return Recipe(cls, config, {"input_values": normal(40)}, rows)


def wav2vec2(norm: str) -> Recipe:
    """The feature encoder with group norm or with layer norm; SpecAugment on, by a mask learnt and put in place."""
    config = t.Wav2Vec2Config(
        **transformer(**SPEECH) | {"mask_time_prob": 0.5, "apply_spec_augment": True},
        feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer",
        conv_bias=norm == "layer",
    )
    hidden = torch.rand(B, 9) < 0.4  # SpecAugment, given: it would draw them from NumPy
    hidden[:, 2] = True
    hidden[:, 5] = False
    return speech(t.Wav2Vec2Model, config)._replace(batch={"input_values": normal(40), "mask_time_indices": hidden})


def whisper() -> t.WhisperConfig:
    return t.WhisperConfig(
        d_model=WIDTH,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=24,
        num_mel_bins=5,
        max_source_positions=6,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=24,
        vocab_size=23,
        decoder_start_token_id=1,
        max_target_positions=8,
        **SPECIAL,
    )


def clip() -> Recipe:
    config = t.CLIPConfig(
        text_config=transformer(vocab_size=23, max_position_embeddings=9, eos_token_id=22),
        vision_config=transformer(image_size=8, patch_size=4),
        projection_dim=6,
    )
    return Recipe(t.CLIPModel, config, pixels(3, 8, 8) | words(23, 6), towers("image_embeds", "text_embeds"))


def siglip() -> Recipe:
    config = t.SiglipConfig(
        text_config=transformer(vocab_size=23, max_position_embeddings=6, projection_size=WIDTH),
        vision_config=transformer(image_size=8, patch_size=4),
    )
    return Recipe(t.SiglipModel, config, pixels(3, 8, 8) | words(23, 6), towers("image_embeds", "text_embeds"))


def clap() -> Recipe:
    config = t.ClapConfig(
        text_config=transformer(vocab_size=23, max_position_embeddings=9),
        audio_config={
            "patch_embeds_hidden_size": 8,
            "hidden_size": 16,
            "depths": [1, 1],
            "num_attention_heads": [2, 2],
            "num_hidden_layers": 2,
            "window_size": 2,
            "spec_size": 32,
            "num_mel_bins": 8,
            "patch_size": 4,
            "patch_stride": [4, 4],
            "drop_path_rate": 0.0,
            "enable_fusion": False,
        },
        projection_dim=6,
    )
    batch = {"input_features": normal(1, 32, 8)} | words(23, 6)
    return Recipe(t.ClapModel, config, batch, towers("audio_embeds", "text_embeds"))


RECIPES: dict[str, Callable[[], Recipe]] = {
    # audio
    "wav2vec2, group norm": partial(wav2vec2, "group"),
    "wav2vec2, layer norm": partial(wav2vec2, "layer"),
    "hubert": lambda: speech(t.HubertModel, t.HubertConfig(**transformer(**SPEECH))),
    "wavlm": lambda: speech(
        t.WavLMModel, t.WavLMConfig(**transformer(**SPEECH, num_buckets=8, max_bucket_distance=16))
    ),
    "sew": lambda: speech(t.SEWModel, t.SEWConfig(**transformer(**SPEECH, squeeze_factor=2))),
    "unispeech_sat": lambda: speech(t.UniSpeechSatModel, t.UniSpeechSatConfig(**transformer(**SPEECH))),
    "data2vec_audio": lambda: speech(
        t.Data2VecAudioModel,
        t.Data2VecAudioConfig(**transformer(**SPEECH | {"num_conv_pos_embeddings": 2}, conv_pos_kernel_size=3)),
    ),
    "wav2vec2_conformer": lambda: speech(
        t.Wav2Vec2ConformerModel, t.Wav2Vec2ConformerConfig(**transformer(**SPEECH, conv_depthwise_kernel_size=3))
    ),
    "wav2vec2_bert": lambda: Recipe(
        t.Wav2Vec2BertModel,
        t.Wav2Vec2BertConfig(
            **transformer(feature_projection_input_dim=8, conv_depthwise_kernel_size=3, apply_spec_augment=False)
        ),
        sequences(10, 8, "input_features"),
        rows,
    ),
    "whisper_encoder": lambda: Recipe(
        t.models.whisper.modeling_whisper.WhisperEncoder, whisper(), sequences(5, 12, "input_features"), rows
    ),
    "whisper": lambda: Recipe(
        t.WhisperModel,
        whisper(),
        sequences(5, 12, "input_features") | {"decoder_input_ids": whole(23, 4, low=3)},
        rows,
        {"use_cache": False},
    ),
    "audio_spectrogram": lambda: Recipe(
        t.ASTModel,
        t.ASTConfig(**transformer(patch_size=4, frequency_stride=3, time_stride=3, max_length=10, num_mel_bins=8)),
        sequences(10, 8, "input_values"),
        pooled,
    ),
    "speech_to_text": lambda: Recipe(
        t.Speech2TextModel,
        t.Speech2TextConfig(
            **BART
            | {
                "input_feat_per_channel": 8,
                "conv_channels": 16,
                "num_conv_layers": 2,
                "conv_kernel_sizes": (3, 3),
                "max_source_positions": 16,
                "max_target_positions": 8,
            }
        ),
        sequences(12, 8, "input_features") | {"decoder_input_ids": whole(23, 4, low=3)},
        rows,
        {"use_cache": False},
    ),
    "encodec": lambda: Recipe(
        t.EncodecModel,
        t.EncodecConfig(
            hidden_size=8,
            num_filters=4,
            upsampling_ratios=[2, 2],
            codebook_size=8,
            codebook_dim=8,
            num_lstm_layers=1,
            compress=2,
        ),
        {"input_values": normal(1, 64)},
        of("audio_values", halves),
    ),
    # series
    "patchtst": lambda: Recipe(
        t.PatchTSTModel,
        t.PatchTSTConfig(
            num_input_channels=2,
            context_length=16,
            patch_length=4,
            patch_stride=4,
            d_model=WIDTH,
            ffn_dim=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            norm_type="layernorm",
            do_mask_input=False,
        ),
        sequences(16, 2, "past_values"),
        of("last_hidden_state", lambda h: h.tanh().mean((1, 2))),
    ),
    # pairs
    "clip_vision": lambda: image(
        t.CLIPVisionModel, t.CLIPVisionConfig(**transformer(image_size=8, patch_size=4)), 8, pooled
    ),
    "clip_text": lambda: text(
        t.CLIPTextModel, t.CLIPTextConfig(**transformer(vocab_size=23, max_position_embeddings=9, eos_token_id=22))
    )._replace(pool=pooled),
    "clip": clip,
    "siglip": siglip,
    "clap": clap,
}
