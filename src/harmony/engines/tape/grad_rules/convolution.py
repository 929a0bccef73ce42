"""Convolutions of any rank, with stride, padding, dilation and groups, and transposed ones: products over windows."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from harmony.engines.tape.layout import SampleBlock, grouped, split
from harmony.engines.tape.param_use import BroadcastUse, MatmulUse, Site


def convolution(site: Site) -> MatmulUse | BroadcastUse | None:
    """Weight (o, i / groups, *kernel), transposed (i, o / groups, *kernel), or bias (o,)."""
    if site.layout.axis != 0:
        return None
    node, groups = site.node, site.node._saved_groups  # type: ignore[attr-defined]
    rank = len(site.output) - 2
    if site.slot == 2:
        return BroadcastUse(site, spread=torch.Size((*site.shape, *[1] * rank)))
    if site.slot != 1:
        return None
    x: Tensor = node._saved_input  # type: ignore[attr-defined]
    kernel = site.shape[2:]
    geometry = (kernel, node._saved_stride, node._saved_padding, node._saved_dilation)  # type: ignore[attr-defined]
    transposed = node._saved_transposed  # type: ignore[attr-defined]
    # A transposed convolution is the gradient of a convolution: input and output change places.
    windowed_shape, plain_shape = (site.output, x.shape) if transposed else (x.shape, site.output)
    positions = plain_shape[2:]

    def windows(image: Tensor, part: SampleBlock) -> Tensor:
        """(g, groups, t, channels / groups * kernel)."""
        image = grouped(image, site.layout, part)
        folded = unfold(image.flatten(0, 2), groups, geometry, positions)  # (g size n, groups, *positions, c, *kernel)
        folded = split(folded, 0, (part.groups, -1)).movedim(2, 1)
        return folded.reshape(part.groups, groups, -1, windowed_shape[1] // groups * math.prod(kernel))

    def pixels(image: Tensor, part: SampleBlock) -> Tensor:
        """(g, groups, t, channels / groups)."""
        image = split(grouped(image, site.layout, part).flatten(3), 3, (groups, -1, math.prod(positions)))
        # (g, size, n, groups, c, positions)
        return image.permute(0, 3, 1, 2, 5, 4).flatten(2, 4)

    n, t = groups, site.layout.rows * math.prod(positions)
    wide, narrow = windowed_shape[1] // groups * math.prod(kernel), plain_shape[1] // groups
    if transposed:
        return MatmulUse(site, lambda part: pixels(x, part), windows, (n, t, narrow, wide), out_first=False)
    return MatmulUse(site, lambda part: windows(x, part), pixels, (n, t, wide, narrow), out_first=True)


def unfold(x: Tensor, groups: int, geometry: tuple[Sequence[int], ...], positions: Sequence[int]) -> Tensor:
    """Windows (b, groups, *positions, c / groups, *kernel) of an image (b, c, *space): a view of the padded image."""
    kernel, stride, padding, dilation = geometry
    x = F.pad(x, [p for p in reversed(padding) for _ in range(2)]).contiguous()
    x = split(x, 1, (groups, -1))
    b, group, channel, *space = x.stride()
    return x.as_strided(
        (len(x), groups, *positions, x.shape[2], *kernel),
        (
            b, group, *(s * step for s, step in zip(space, stride, strict=True)),
            channel, *(s * step for s, step in zip(space, dilation, strict=True)),
        ),
    )  # fmt: skip


RULES = {"ConvolutionBackward0": convolution}
