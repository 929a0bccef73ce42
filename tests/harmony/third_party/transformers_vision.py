"""Architectures of transformers for images and video."""

from collections.abc import Callable
from typing import Any

import transformers as t

from tests.harmony.third_party.architecture import (
    normal,
)
from tests.harmony.third_party.transformers_recipe import (
    WIDTH,
    Recipe,
    image,
    pooled,
    rows,
    space,
    transformer,
)

WINDOWS = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}


def video(cls: Any, config: Any, *shape: int, name: str = "pixel_values") -> Recipe:
    return Recipe(cls, config, {name: normal(*shape)}, rows)


def timesformer() -> Recipe:
    config = t.TimesformerConfig(**transformer(image_size=8, patch_size=4, num_frames=2))
    return video(t.TimesformerModel, config, 2, 3, 8, 8)


def mobilevit() -> Recipe:
    config = t.MobileViTConfig(
        image_size=32, hidden_sizes=[8, 8, 8], neck_hidden_sizes=[4, 4, 4, 8, 8, 8, 16], num_attention_heads=2
    )
    return image(t.MobileViTModel, config, 64, space)


def sam_vision() -> Recipe:
    config = t.SamVisionConfig(
        **transformer(
            image_size=16, patch_size=4, window_size=2, global_attn_indexes=[1], output_channels=8, mlp_dim=24
        )
    )
    return image(t.SamVisionModel, config, 16, space)


def segformer() -> Recipe:
    config = t.SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        hidden_sizes=[8, 16],
        num_attention_heads=[1, 2],
        sr_ratios=[2, 1],
        patch_sizes=[7, 3],
        strides=[4, 2],
        mlp_ratios=[2, 2],
        drop_path_rate=0.0,
    )
    return image(t.SegformerModel, config, 32, space)


RECIPES: dict[str, Callable[[], Recipe]] = {
    # images
    "vit": lambda: image(t.ViTModel, t.ViTConfig(**transformer(image_size=8, patch_size=4)), 8, pooled),
    "deit": lambda: image(t.DeiTModel, t.DeiTConfig(**transformer(image_size=16, patch_size=4))),
    "beit": lambda: image(
        t.BeitModel,
        t.BeitConfig(**transformer(image_size=16, patch_size=4, use_relative_position_bias=True, drop_path_rate=0.0)),
    ),
    "dinov2": lambda: image(
        t.Dinov2Model,
        t.Dinov2Config(
            hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=16, patch_size=4
        ),
    ),
    "dinov3": lambda: image(
        t.DINOv3ViTModel,
        t.DINOv3ViTConfig(**transformer(image_size=16, patch_size=4, num_register_tokens=2, pos_embed_rescale=None)),
    ),
    "siglip_vision": lambda: image(
        t.SiglipVisionModel, t.SiglipVisionConfig(**transformer(image_size=16, patch_size=4)), 16, pooled
    ),
    "swin": lambda: image(t.SwinModel, t.SwinConfig(**WINDOWS, drop_path_rate=0.0), 16, pooled),
    "swinv2": lambda: image(t.Swinv2Model, t.Swinv2Config(**WINDOWS, drop_path_rate=0.0), 16, pooled),
    "donut_swin": lambda: image(t.DonutSwinModel, t.DonutSwinConfig(**WINDOWS, drop_path_rate=0.0), 16),
    "hiera": lambda: image(
        t.HieraModel,
        t.HieraConfig(
            image_size=[32, 32],
            embed_dim=8,
            depths=[1, 1],
            num_heads=[1, 2],
            patch_size=[7, 7],
            patch_stride=[4, 4],
            patch_padding=[3, 3],
            query_stride=[2, 2],
            num_query_pool=1,
            masked_unit_size=[4, 4],
            masked_unit_attention=[True, False],
            mlp_ratio=2.0,
            drop_path_rate=0.0,
        ),
        32,
    ),
    "pvt": lambda: image(
        t.PvtModel,
        t.PvtConfig(
            image_size=32,
            num_encoder_blocks=2,
            depths=[1, 1],
            hidden_sizes=[8, 16],
            num_attention_heads=[1, 2],
            sequence_reduction_ratios=[2, 1],
            patch_sizes=[4, 2],
            strides=[4, 2],
            mlp_ratios=[2, 2],
            drop_path_rate=0.0,
        ),
        32,
    ),
    "pvt_v2": lambda: image(
        t.PvtV2Model,
        t.PvtV2Config(
            image_size=32,
            num_encoder_blocks=2,
            depths=[1, 1],
            hidden_sizes=[8, 16],
            num_attention_heads=[1, 2],
            sr_ratios=[2, 1],
            patch_sizes=[7, 3],
            strides=[4, 2],
            mlp_ratios=[2, 2],
            drop_path_rate=0.0,
        ),
        32,
        space,
    ),
    "segformer": segformer,
    "cvt": lambda: image(
        t.CvtModel,
        t.CvtConfig(
            embed_dim=[8, 16],
            depth=[1, 2],
            num_heads=[1, 2],
            patch_sizes=[7, 3],
            patch_stride=[4, 2],
            patch_padding=[2, 1],
            cls_token=[False, True],
            mlp_ratio=[2.0, 2.0],
            attention_drop_rate=[0.0, 0.0],
            drop_rate=[0.0, 0.0],
            drop_path_rate=[0.0, 0.0],
            qkv_bias=[True, True],
            qkv_projection_method=["dw_bn", "dw_bn"],
            kernel_qkv=[3, 3],
            padding_kv=[1, 1],
            stride_kv=[2, 2],
            padding_q=[1, 1],
            stride_q=[1, 1],
        ),
        32,
        space,
    ),
    "convnext": lambda: image(
        t.ConvNextModel, t.ConvNextConfig(hidden_sizes=[8, WIDTH], depths=[1, 1], num_stages=2, patch_size=4), 16, space
    ),
    "convnextv2": lambda: image(
        t.ConvNextV2Model,
        t.ConvNextV2Config(hidden_sizes=[8, WIDTH], depths=[1, 1], num_stages=2, patch_size=4),
        16,
        space,
    ),
    "focalnet": lambda: image(
        t.FocalNetModel,
        t.FocalNetConfig(
            image_size=16,
            patch_size=2,
            embed_dim=8,
            depths=[1, 1],
            focal_levels=[2, 2],
            focal_windows=[3, 3],
            hidden_sizes=[8, 16],
        ),
        16,
    ),
    "poolformer": lambda: image(
        t.PoolFormerModel,
        t.PoolFormerConfig(
            hidden_sizes=[8, 16],
            depths=[1, 1],
            num_encoder_blocks=2,
            patch_sizes=[7, 3],
            strides=[4, 2],
            padding=[2, 1],
            drop_path_rate=0.0,
        ),
        16,
        space,
    ),
    "mobilevit": mobilevit,
    "levit": lambda: image(
        t.LevitModel,
        t.LevitConfig(
            image_size=64,
            hidden_sizes=[16, 16, 16],
            num_attention_heads=[2, 2, 2],
            depths=[1, 1, 1],
            key_dim=[8, 8, 8],
            mlp_ratio=[2, 2, 2],
            attention_ratio=[2, 2, 2],
            drop_path_rate=0,
        ),
        64,
    ),
    "regnet": lambda: image(
        t.RegNetModel,
        t.RegNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=4, layer_type="y"),
        32,
        space,
    ),
    "resnet": lambda: image(
        t.ResNetModel,
        t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
        32,
        space,
    ),
    "vitdet": lambda: image(
        t.VitDetModel,
        t.VitDetConfig(
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            mlp_ratio=2,
            image_size=16,
            patch_size=4,
            window_block_indices=[0],
            window_size=2,
            use_relative_position_embeddings=True,
        ),
        16,
        space,
    ),
    "sam_vision": sam_vision,
    # video
    "videomae": lambda: video(
        t.VideoMAEModel,
        t.VideoMAEConfig(**transformer(image_size=8, patch_size=4, num_frames=4, tubelet_size=2)),
        4,
        3,
        8,
        8,
    ),
    "vivit": lambda: video(
        t.VivitModel, t.VivitConfig(**transformer(image_size=8, num_frames=4, tubelet_size=[2, 4, 4])), 4, 3, 8, 8
    ),
    "timesformer": timesformer,
    "vjepa2": lambda: video(
        t.VJEPA2Model,
        t.VJEPA2Config(
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            mlp_ratio=2,
            crop_size=8,
            patch_size=4,
            frames_per_clip=4,
            tubelet_size=2,
            pred_hidden_size=24,
            pred_num_attention_heads=2,
            pred_num_hidden_layers=1,
        ),
        4,
        3,
        8,
        8,
        name="pixel_values_videos",
    )._replace(shared={"skip_predictor": True}),
}
