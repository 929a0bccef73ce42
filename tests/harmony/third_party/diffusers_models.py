"""Architectures of diffusers: transformers of noise and text in one stream or two, U-Nets, autoencoders."""

from typing import Any

import diffusers as d
import torch
from torch import Tensor, nn

from tests.harmony.third_party.architecture import (
    Architecture,
    B,
    Builder,
    halves,
    maps,
    normal,
    of,
    tokens,
    vector,
    whole,
)

sample = of("sample", maps)


def times() -> Tensor:
    """A step of the noise for each sample."""
    return torch.tensor([3, 140, 77])[:B]


def latents(module: nn.Module, *shape: int, pool: Any = sample, **batch: Tensor) -> Architecture:
    """Noisy latents of this shape."""
    return Architecture(module, {"hidden_states": normal(*shape), "timestep": times()} | batch, pool)


def noisy(module: nn.Module, *shape: int, **batch: Tensor) -> Architecture:
    """As ``latents``, of U-Nets."""
    return Architecture(module, {"sample": normal(*shape), "timestep": times()} | batch, sample)


def picture(module: nn.Module, size: int = 16) -> Architecture:
    """An autoencoder of images."""
    return Architecture(module, {"sample": normal(3, size, size)}, of("sample", halves))


HEADS: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 8}
IN_OUT: dict[str, Any] = {"in_channels": 4, "out_channels": 4}
BLOCKS: dict[str, Any] = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}


def sd3(**settings: Any) -> Architecture:
    module = d.SD3Transformer2DModel(
        sample_size=8,
        num_layers=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        pos_embed_max_size=8,
        **HEADS,
        **IN_OUT,
        **settings,
    )
    return latents(module, 4, 8, 8, encoder_hidden_states=normal(5, 12), pooled_projections=normal(10))


def flux() -> Architecture:
    module = d.FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(4, 2, 2),
        **HEADS,
    )
    shared = {"img_ids": torch.randint(4, (16, 3)).double(), "txt_ids": torch.zeros(5, 3, dtype=torch.float64)}
    architecture = latents(
        module, 16, 4, pool=of("sample", tokens), encoder_hidden_states=normal(5, 12), pooled_projections=normal(10)
    )
    return architecture._replace(shared=shared)


def dit() -> Architecture:
    module = d.DiTTransformer2DModel(num_layers=2, sample_size=8, num_embeds_ada_norm=5, **HEADS, **IN_OUT)
    return latents(module, 4, 8, 8, class_labels=whole(5))


def pixart() -> Architecture:
    module = d.PixArtTransformer2DModel(
        num_layers=2,
        sample_size=8,
        cross_attention_dim=16,
        caption_channels=12,
        use_additional_conditions=False,
        **HEADS,
        **IN_OUT,
    )
    return latents(module, 4, 8, 8, encoder_hidden_states=normal(5, 12))


def aura_flow() -> Architecture:
    module = d.AuraFlowTransformer2DModel(
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pos_embed_max_size=16,
        **HEADS,
        **IN_OUT,
    )
    return latents(module, 4, 8, 8, encoder_hidden_states=normal(5, 12))


def cog_video() -> Architecture:
    module = d.CogVideoXTransformer3DModel(
        time_embed_dim=8,
        text_embed_dim=12,
        num_layers=1,
        sample_width=8,
        sample_height=8,
        sample_frames=5,
        max_text_seq_length=5,
        **HEADS,
        **IN_OUT,
    )
    return latents(module, 2, 4, 8, 8, encoder_hidden_states=normal(5, 12))


def latte() -> Architecture:
    module = d.LatteTransformer3DModel(
        num_layers=1,
        sample_size=8,
        patch_size=2,
        caption_channels=12,
        video_length=2,
        cross_attention_dim=16,
        norm_type="ada_norm_single",
        num_embeds_ada_norm=100,
        norm_elementwise_affine=False,
        attention_bias=True,
        **HEADS,
        **IN_OUT,
    )
    return latents(module, 4, 2, 8, 8, encoder_hidden_states=normal(5, 12))


def wan() -> Architecture:
    module = d.WanTransformer3DModel(
        text_dim=12,
        freq_dim=8,
        ffn_dim=24,
        num_layers=1,
        rope_max_seq_len=16,
        num_attention_heads=2,
        attention_head_dim=12,
        **IN_OUT,
    )
    return latents(module, 4, 2, 4, 4, encoder_hidden_states=normal(5, 12))


def sana() -> Architecture:
    module = d.SanaTransformer2DModel(
        num_layers=1,
        sample_size=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=12,
        **HEADS,
        **IN_OUT,
    )
    return latents(module, 4, 8, 8, encoder_hidden_states=normal(5, 12))


def stable_audio() -> Architecture:
    module = d.StableAudioDiTModel(
        sample_size=8,
        num_layers=2,
        num_key_value_attention_heads=1,
        cross_attention_dim=12,
        time_proj_dim=8,
        global_states_input_dim=10,
        cross_attention_input_dim=12,
        **HEADS,
        **IN_OUT,
    )
    return latents(module, 4, 8, encoder_hidden_states=normal(5, 12), global_hidden_states=normal(1, 10))._replace(
        shared={"rotary_embedding": None}
    )


def prior() -> Architecture:
    module = d.PriorTransformer(num_layers=1, embedding_dim=8, num_embeddings=5, additional_embeddings=4, **HEADS)
    return latents(
        module,
        8,
        pool=of("predicted_image_embedding", vector),
        proj_embedding=normal(8),
        encoder_hidden_states=normal(5, 8),
    )


def hunyuan_video() -> Architecture:
    module = d.HunyuanVideoTransformer3DModel(
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=12,
        pooled_projection_dim=10,
        rope_axes_dim=(4, 2, 2),
        guidance_embeds=False,
        mlp_ratio=2.0,
        **HEADS,
        **IN_OUT,
    )
    mask = torch.arange(5) < torch.tensor([[4], [2], [5]])
    return latents(
        module,
        4,
        1,
        8,
        8,
        encoder_hidden_states=normal(5, 12),
        encoder_attention_mask=mask.long(),
        pooled_projections=normal(10),
    )


def ltx() -> Architecture:
    module = d.LTXVideoTransformer3DModel(cross_attention_dim=16, caption_channels=12, num_layers=1, **HEADS, **IN_OUT)
    mask = torch.arange(5) < torch.tensor([[4], [2], [5]])
    architecture = latents(
        module, 8, 4, pool=of("sample", tokens), encoder_hidden_states=normal(5, 12), encoder_attention_mask=mask.long()
    )
    return architecture._replace(shared={"num_frames": 2, "height": 2, "width": 2})


def unet() -> Architecture:
    module = d.UNet2DModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **IN_OUT,
        **BLOCKS,
    )
    return noisy(module, 4, 8, 8)


def unet_condition() -> Architecture:
    module = d.UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=2,
        **IN_OUT,
        **BLOCKS,
    )
    return noisy(module, 4, 8, 8, encoder_hidden_states=normal(5, 12))


def unet_video() -> Architecture:
    module = d.UNet3DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=12,
        attention_head_dim=2,
        **IN_OUT,
        **BLOCKS,
    )
    return noisy(module, 4, 2, 8, 8, encoder_hidden_states=normal(5, 12))


def unet_1d() -> Architecture:
    module = d.UNet1DModel(
        sample_size=16,
        in_channels=2,
        out_channels=2,
        extra_in_channels=64,
        block_out_channels=(32, 32),
        down_block_types=("DownBlock1DNoSkip", "AttnDownBlock1D"),
        up_block_types=("AttnUpBlock1D", "UpBlock1DNoSkip"),
        layers_per_block=1,
    )
    return noisy(module, 2, 16)


def autoencoder(cls: Any = d.AutoencoderKL) -> Architecture:
    return picture(
        cls(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            sample_size=16,
            latent_channels=4,
            **BLOCKS,
        )
    )


def autoencoder_dc() -> Architecture:
    module = d.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
    )
    return picture(module, 16)


BUILDERS: dict[str, Builder] = {
    "SD3 (MMDiT)": sd3,
    "SD3.5 (MMDiT-X)": lambda: sd3(dual_attention_layers=(0,), qk_norm="rms_norm"),
    "Flux": flux,
    "DiT": dit,
    "PixArt": pixart,
    "AuraFlow": aura_flow,
    "CogVideoX": cog_video,
    "Latte": latte,
    "Wan": wan,
    "Sana": sana,
    "Stable Audio": stable_audio,
    "prior": prior,
    "HunyuanVideo": hunyuan_video,
    "LTX": ltx,
    "U-Net": unet,
    "U-Net, text": unet_condition,
    "U-Net, video": unet_video,
    "U-Net, sound": unet_1d,
    "autoencoder KL": autoencoder,
    "autoencoder VQ": lambda: autoencoder(d.VQModel),
    "autoencoder DC": autoencoder_dc,
}
