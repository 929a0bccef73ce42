"""Architectures of torchvision: convolutional, windowed, and of video."""

from typing import Any

from torchvision import models
from torchvision.models import video

from tests.harmony.third_party.architecture import Architecture, Builder, normal, vector


def image(module: Any, size: int = 32) -> Architecture:
    """A classifier of images, whose scores are the embeddings."""
    return Architecture(module, (normal(3, size, size),), vector)


def clip(module: Any, frames: int = 4, size: int = 16) -> Architecture:
    """A classifier of clips."""
    return Architecture(module, (normal(3, frames, size, size),), vector)


WINDOWS = {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "stochastic_depth_prob": 0.0, "num_classes": 6}


def _efficientnet() -> Architecture:
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig

    blocks = [MBConvConfig(1, 3, 1, 8, 8, 1, 1.0, 1.0), MBConvConfig(2, 3, 2, 8, 8, 2, 1.0, 1.0)]
    return image(EfficientNet(blocks, dropout=0.0, stochastic_depth_prob=0.0, num_classes=6, last_channel=16))


def _convnext() -> Architecture:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return image(ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=6))


def _mvit() -> Architecture:
    from torchvision.models.video.mvit import MSBlockConfig, MViT

    blocks = [
        MSBlockConfig(1, 8, 8, [], [3, 3, 3], [], [1, 2, 2]),
        MSBlockConfig(2, 8, 16, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 1, 1]),
    ]
    return clip(
        MViT(
            (32, 32),
            4,
            blocks,
            residual_pool=True,
            residual_with_cls_embed=False,
            rel_pos_embed=True,
            proj_after_attn=True,
            num_classes=6,
        ),
        size=32,
    )


def _vit() -> Architecture:
    return image(models.VisionTransformer(16, 4, 2, 2, 8, 16, num_classes=6), 16)


def _mobilenet_v3() -> Architecture:
    from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

    blocks = [
        InvertedResidualConfig(16, 3, 16, 16, True, "RE", 2, 1, 0.5),
        InvertedResidualConfig(16, 5, 24, 16, True, "HS", 1, 1, 0.5),
    ]
    return image(MobileNetV3(blocks, 16, num_classes=6, dropout=0.0))


def _maxvit() -> Architecture:
    module = models.MaxVit((32, 32), 8, 4, [8, 16], [1, 1], 8, stochastic_depth_prob=0.0, num_classes=6)
    return image(module)


def _regnet() -> Architecture:
    from torchvision.models.regnet import BlockParams, RegNet

    parameters = BlockParams([1, 1], [8, 16], [4, 8], [1.0, 1.0], [2, 2], se_ratio=0.25)
    return image(RegNet(parameters, num_classes=6, stem_width=8))


def _r2plus1d() -> Architecture:
    from torchvision.models.video.resnet import BasicBlock, Conv2Plus1D, R2Plus1dStem, VideoResNet

    return clip(VideoResNet(BasicBlock, [Conv2Plus1D] * 4, [1, 1, 1, 1], R2Plus1dStem, 6))


def _swin3d() -> Architecture:
    module = video.SwinTransformer3d([2, 2, 2], window_size=[2, 2, 2], **WINDOWS)
    return clip(module)


BUILDERS: dict[str, Builder] = {
    "ConvNeXt": _convnext,
    "DenseNet": lambda: image(models.DenseNet(4, (2, 2), 8, num_classes=6)),
    "EfficientNet": _efficientnet,
    "GoogLeNet": lambda: image(models.GoogLeNet(6, aux_logits=False, init_weights=False, dropout=0.0)),
    "MNASNet": lambda: image(models.MNASNet(0.25, 6, dropout=0.0)),
    "MaxVit": _maxvit,
    "MobileNetV2": lambda: image(
        models.MobileNetV2(6, 0.25, [[1, 8, 1, 1], [2, 8, 1, 2]], dropout=0.0),
    ),
    "MobileNetV3": _mobilenet_v3,
    "MViT": _mvit,
    "RegNet": _regnet,
    "ResNet": lambda: image(models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], 6)),
    "ShuffleNetV2": lambda: image(models.ShuffleNetV2([1, 1, 1], [8, 8, 16, 32, 16], 6)),
    "SqueezeNet": lambda: image(models.SqueezeNet("1_1", 6, dropout=0.0)),
    "SwinTransformer": lambda: image(models.SwinTransformer([2, 2], window_size=[4, 4], **WINDOWS)),
    "SwinTransformer V2": lambda: image(
        models.SwinTransformer(
            [2, 2],
            window_size=[4, 4],
            block=models.swin_transformer.SwinTransformerBlockV2,
            downsample_layer=models.swin_transformer.PatchMergingV2,
            **WINDOWS,
        )
    ),
    "VisionTransformer": _vit,
    "R(2+1)D": _r2plus1d,
    "SwinTransformer3d": _swin3d,
}
