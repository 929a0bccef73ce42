"""Architectures of timm, by its own factory, made small."""

from functools import partial
from typing import Any

import timm

from tests.harmony.third_party.architecture import Architecture, Builder, normal, vector


def make(name: str, size: int = 32, **settings: Any) -> Builder:
    """A model of timm's registry with six classes, and images of this size."""
    return lambda: Architecture(timm.create_model(name, num_classes=6, **settings), (normal(3, size, size),), vector)


def image(module: Any, size: int = 32) -> Architecture:
    """A classifier of images."""
    return Architecture(module, (normal(3, size, size),), vector)


def mixer(block: type, ratio: Any = (0.5, 4.0), layer: type = timm.layers.Mlp) -> Builder:
    """An MLP over tokens and channels."""
    return lambda: image(
        timm.models.mlp_mixer.MlpMixer(6, 32, 3, 8, 2, 16, mlp_ratio=ratio, block_layer=block, mlp_layer=layer)
    )


def attentive(layer: str, size: int = 32, **settings: Any) -> Builder:
    """A residual network whose second stage attends."""
    from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

    blocks = (ByoBlockCfg("bottle", 1, 16, 2, br=0.5), ByoBlockCfg("self_attn", 1, 32, 2, br=0.5))
    config = ByoModelCfg(blocks, stem_chs=8, stem_type="3x3", self_attn_layer=layer, self_attn_kwargs=settings)
    return lambda: image(ByobNet(config, num_classes=6, img_size=size), size)


def metaformer(mixer: type) -> Builder:
    """Two stages whose blocks mix tokens in this way."""
    return lambda: image(
        timm.models.metaformer.MetaFormer(num_classes=6, depths=(1, 1), dims=(8, 16), token_mixers=mixer)
    )


def volo() -> Architecture:
    return image(
        timm.models.volo.VOLO(
            (1, 1, 1, 1),
            32,
            num_classes=6,
            patch_size=4,
            stem_hidden_dim=8,
            embed_dims=(16, 16, 16, 16),
            num_heads=(2, 2, 2, 2),
            downsamples=(True, False, False, False),
            outlook_attention=(True, False, False, False),
            mlp_ratio=2.0,
        )
    )


def nfnet() -> Architecture:
    config = timm.models.nfnet.NfCfg(
        (1, 1), (16, 16), stem_type="3x3", stem_chs=8, group_size=8, attn_layer="se", attn_kwargs={}, num_features=16
    )
    return image(timm.models.nfnet.NormFreeNet(config, num_classes=6))


TRANSFORMER: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
BUILDERS: dict[str, Builder] = {
    "vit": make("vit_tiny_patch16_224", **TRANSFORMER),
    "vit_relpos": make("vit_relpos_small_patch16_224", **TRANSFORMER),
    "eva02": make("eva02_tiny_patch14_224", **TRANSFORMER),
    "beit": make("beit_base_patch16_224", **TRANSFORMER),
    "deit_distilled": make("deit_tiny_distilled_patch16_224", **TRANSFORMER),
    "swin": make(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        patch_size=4,
        window_size=4,
        embed_dim=8,
        depths=(2, 2),
        num_heads=(2, 2),
        drop_path_rate=0.0,
    ),
    "swinv2": make(
        "swinv2_tiny_window8_256",
        img_size=32,
        patch_size=4,
        window_size=4,
        embed_dim=8,
        depths=(2, 2),
        num_heads=(2, 2),
        drop_path_rate=0.0,
    ),
    "swinv2_cr": make(
        "swinv2_cr_tiny_224",
        img_size=32,
        patch_size=4,
        window_size=4,
        embed_dim=8,
        depths=(2, 2),
        num_heads=(2, 2),
        drop_path_rate=0.0,
    ),
    "twins_svt": make(
        "twins_svt_small",
        img_size=32,
        embed_dims=(8, 8, 16, 16),
        num_heads=(1, 1, 2, 2),
        depths=(1, 1, 2, 1),
        wss=(4, 2, 2, 1),
        sr_ratios=(4, 2, 1, 1),
        drop_path_rate=0.0,
    ),
    "pvt_v2": make(
        "pvt_v2_b0", embed_dims=(8, 8, 16, 16), num_heads=(1, 1, 2, 2), depths=(1, 1, 1, 1), drop_path_rate=0.0
    ),
    "mobilevit": make("mobilevit_xxs", size=64),
    "mobilevitv2": make("mobilevitv2_050", size=64),
    "efficientformerv2": make(
        "efficientformerv2_s0", size=64, depths=(1, 1, 1, 1), embed_dims=(8, 8, 16, 16), img_size=64, drop_path_rate=0.0
    ),
    "edgenext": make("edgenext_xx_small", size=64, dims=(8, 8, 16, 16), depths=(1, 1, 2, 2), drop_path_rate=0.0),
    "efficientnet": make("tinynet_e", size=32),
    "ghostnet": make("ghostnet_050", size=32),
    "davit": make(
        "davit_tiny", size=32, depths=(1, 1), embed_dims=(8, 16), num_heads=(2, 2), window_size=4, drop_path_rate=0.0
    ),
    "xcit": make(
        "xcit_nano_12_p8_224", img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, cls_attn_layers=1
    ),
    "cait": make("cait_xxs24_224", img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2),
    "hiera": make(
        "hiera_tiny_224", img_size=(32, 32), embed_dim=8, num_heads=1, stages=(1, 1), q_pool=1, mask_unit_size=(4, 4)
    ),
    "tnt": make(
        "tnt_s_patch16_224",
        img_size=32,
        patch_size=16,
        embed_dim=16,
        inner_dim=8,
        depth=2,
        num_heads_inner=2,
        num_heads_outer=2,
    ),
    "convit": make("convit_tiny", img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, local_up_to_layer=1),
    "visformer": make(
        "visformer_tiny", size=32, img_size=32, init_channels=8, embed_dim=16, depth=(1, 1, 1), num_heads=2
    ),
    "sequencer2d": make(
        "sequencer2d_s",
        img_size=32,
        layers=(1, 1),
        patch_sizes=(4, 2),
        embed_dims=(8, 16),
        hidden_sizes=(4, 8),
        mlp_ratios=(2.0, 2.0),
    ),
    "mambaout": make("mambaout_femto", size=32, depths=(1, 1), dims=(16, 16)),
    "mixer": mixer(timm.models.mlp_mixer.MixerBlock),
    "gmlp": mixer(timm.models.mlp_mixer.SpatialGatingBlock, 2, timm.layers.GatedMlp),
    "resmlp": mixer(timm.models.mlp_mixer.ResBlock, 2),
    "volo": volo,
    "coat": lambda: image(
        timm.models.coat.CoaT(
            32,
            4,
            num_classes=6,
            embed_dims=(16, 16, 16, 16),
            serial_depths=(1, 1, 1, 1),
            parallel_depth=1,
            num_heads=8,
            mlp_ratios=(1, 1, 1, 1),
        )
    ),
    "coatnet": make(
        "coatnet_0_rw_224",
        size=64,
        img_size=64,
        depths=(1, 1, 1, 1),
        embed_dim=(8, 32, 32, 32),
        stem_width=(8, 8),
        drop_path_rate=0.0,
    ),
    "maxxvit": make(
        "maxxvit_rmlp_nano_rw_256",
        size=64,
        img_size=64,
        depths=(1, 1),
        embed_dim=(32, 32),
        stem_width=(8, 8),
        drop_path_rate=0.0,
    ),
    "efficientformer": make(
        "efficientformer_l1", size=224, depths=(1, 1, 1, 1), embed_dims=(8, 8, 16, 16), drop_path_rate=0.0
    ),
    "convnext": make("convnext_tiny", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)),
    "convnextv2": make("convnextv2_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)),
    "poolformer": metaformer(timm.models.metaformer.Pooling),
    "convformer": metaformer(timm.models.metaformer.SepConv),
    "focalnet": lambda: image(
        timm.models.focalnet.FocalNet(
            num_classes=6, embed_dim=8, depths=(1, 1), focal_levels=(2, 2), focal_windows=(3, 3), drop_path_rate=0.0
        )
    ),
    "nfnet": nfnet,
    "resnetv2": lambda: image(
        timm.models.resnetv2.ResNetV2(
            (1, 1),
            (16, 32),
            6,
            stem_chs=8,
            stem_type="fixed",
            norm_layer=partial(timm.layers.GroupNormAct, num_groups=4),
            conv_layer=timm.layers.StdConv2d,
        )
    ),
    "halonet": attentive("halo", block_size=4, halo_size=1, dim_head=8),
    "botnet": attentive("bottleneck", dim_head=8),
    "lambda_resnet": attentive("lambda", dim_head=8, r=3),
    "nest": lambda: image(
        timm.models.nest.Nest(
            32,
            patch_size=4,
            num_levels=2,
            embed_dims=(8, 16),
            num_heads=(2, 2),
            depths=(1, 1),
            num_classes=6,
            drop_path_rate=0.0,
        )
    ),
    "levit": make("levit_128s", size=64, img_size=64, embed_dim=(16, 16), num_heads=(2, 2), depth=(1, 1), key_dim=8),
    "repvit": lambda: image(timm.models.repvit.RepVit(num_classes=6, embed_dim=(8, 16), depth=(1, 1), drop_rate=0.0)),
    "crossvit": lambda: image(
        timm.models.crossvit.CrossVit(
            32,
            img_scale=(1.0, 0.5),
            patch_size=(8, 8),
            num_classes=6,
            embed_dim=(8, 16),
            depth=((1, 1, 1),),
            num_heads=(2, 2),
            mlp_ratio=(2.0, 2.0, 1.0),
        )
    ),
}
