"""A convolutional network on pictures, and the two losses that every workload of one input has."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import harmony
from recipes.research.benchmark.workloads.layers import head
from recipes.research.benchmark.workloads.workload import Batch, Spec, Workload, WorkloadError

CLASSES = 10
STAGES = 4  # of the CNN; each after the first halves the picture and doubles the channels
GROUPS = 8  # of a GroupNorm


class ClassAndContrast(nn.Module):
    """Two losses of two summaries of one input: the class of the first, and telling its own second from others'."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classify, self.query, self.key = head(width, CLASSES), head(width, width), head(width, width)

    def forward(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"one": (b, d), "other": (b, d), "label": (b,)} -> two losses of terms (b,)."""
        one, other = embeddings["one"], embeddings["other"]
        return {
            "class": F.cross_entropy(self.classify(one), embeddings["label"], reduction="none"),
            "contrast": harmony.losses.info_nce(self.query(one), self.key(other), temperature=0.1),
        }


class Block(nn.Module):
    """Two convolutions, each normalised over groups of channels, and a way round them.

    References:
        He et al., Deep Residual Learning for Image Recognition, 2015 (arXiv:1512.03385); Wu and He, Group
        Normalization, 2018 (arXiv:1803.08494).
    """

    def __init__(self, channels: int, output: int) -> None:
        super().__init__()
        stride = output // channels
        self.first = nn.Conv2d(channels, output, 3, stride, padding=1, bias=False)
        self.second = nn.Conv2d(output, output, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(_norm(output) for _ in range(2))
        self.around = nn.Identity() if stride == 1 else nn.Conv2d(channels, output, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (b, c, h, w) -> (b, output, h / stride, w / stride)."""
        y = self.norms[0](self.first(x)).relu()
        return (self.norms[1](self.second(y)) + self.around(x)).relu()


class ResNet(nn.Module):
    """A residual network of four stages; mean and maximum of its last feature map, and the labels passed through."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        stages = [number * STAGES // blocks for number in range(blocks)]
        channels = [width >> (STAGES - 1 - stage) for stage in [0, *stages]]
        self.stem = nn.Sequential(nn.Conv2d(3, channels[0], 3, padding=1, bias=False), _norm(channels[0]), nn.ReLU())
        self.blocks = nn.Sequential(*(Block(*pair) for pair in itertools.pairwise(channels)))

    def forward(self, pictures: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Pictures (b, 3, h, w) -> the embeddings of `ClassAndContrast`."""
        features = self.blocks(self.stem(pictures))
        return {"one": features.mean((2, 3)), "other": features.amax((2, 3)), "label": label}


def cnn(spec: Spec) -> Workload:
    """`ResNet`: `layers` are its blocks (8: ResNet-18), `width` its last channels, `tokens` the last map's places."""
    if spec.width % 2 ** (STAGES - 1) or spec.layers % STAGES:
        raise WorkloadError(f"a CNN of {STAGES} stages needs width= a multiple of 8 and layers= of {STAGES}")
    side = picture_side(spec, 2 ** (STAGES - 1))

    def draw(size: int) -> Batch:
        return {"pictures": torch.randn(size, 3, side, side), "label": labels(size)}

    last = f"blocks.{spec.layers - 1}."
    parts = {"last block": last, "last projection": f"{last}second."}
    return Workload(spec, ResNet(spec.width, spec.layers), ClassAndContrast(spec.width), draw, parts=parts)


def picture_side(spec: Spec, patch: int) -> int:
    """Side of a square picture, in pixels, that is cut into ``spec.tokens`` patches."""
    side = math.isqrt(spec.tokens)
    if side**2 != spec.tokens:
        raise WorkloadError(
            f"a picture has a square number of patches; tokens={spec.tokens} is none (64, 144, 196, 256)"
        )
    return side * patch


def labels(size: int) -> Tensor:
    """Random classes (b,)."""
    return torch.randint(0, CLASSES, (size,))


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(GROUPS, channels), channels)
