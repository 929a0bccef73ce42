"""Convolutions of any rank, with stride, padding, dilation and groups, and transposed ones: products over windows."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from harmony.engines.tape.grad_rules.normalization import over_channels
from harmony.engines.tape.param_use import BroadcastUse, MatmulUse, Site
from harmony.engines.tape.sample_block import SampleBlock, grouped, split


def convolution(site: Site) -> MatmulUse | BroadcastUse | None:
    """Weight (o, i / groups, *kernel), transposed (i, o / groups, *kernel), or bias (o,)."""
    if site.layout.axis != 0 or site.slot == 0:
        return None
    if site.slot == 2:
        return BroadcastUse(site, spread=over_channels(site))
    x, groups, transposed = site.saved("input"), site.saved("groups"), site.saved("transposed")
    kernel = site.shape[2:]
    geometry = kernel, site.saved("stride"), site.saved("padding"), site.saved("dilation")
    # A transposed convolution is the gradient of a convolution: input and output change places.
    windowed, plain = (site.output, x.shape) if transposed else (x.shape, site.output)
    positions = plain[2:]
    wide, narrow = windowed[1] // groups * math.prod(kernel), plain[1] // groups

    def windows(image: Tensor, block: SampleBlock) -> Tensor:
        """(g, groups, t, channels / groups * kernel)."""
        image = grouped(image, site.layout, block)
        folded = unfold(image.flatten(0, 2), groups, geometry, positions)  # (g size n, groups, *positions, c, *kernel)
        return split(folded, 0, (block.groups, -1)).movedim(2, 1).reshape(block.groups, groups, -1, wide)

    def pixels(image: Tensor, block: SampleBlock) -> Tensor:
        """(g, groups, t, channels / groups)."""
        image = split(grouped(image, site.layout, block).flatten(3), 3, (groups, -1, math.prod(positions)))
        return image.permute(0, 3, 1, 2, 5, 4).flatten(2, 4)  # of (g, size, n, groups, c, positions)

    n, t = groups, site.layout.rows * math.prod(positions)
    if transposed:
        return MatmulUse(site, lambda block: pixels(x, block), windows, (n, t, narrow, wide), out_first=False)
    return MatmulUse(site, lambda block: windows(x, block), pixels, (n, t, wide, narrow), out_first=True)


def unfold(x: Tensor, groups: int, geometry: tuple[Sequence[int], ...], positions: Sequence[int]) -> Tensor:
    """Windows (b, groups, *positions, c / groups, *kernel) of an image (b, c, *space): a view of the padded image."""
    kernel, stride, padding, dilation = geometry
    x = F.pad(x, [p for p in reversed(padding) for _ in range(2)]).contiguous()
    x = split(x, 1, (groups, -1))
    b, group, channel, *space = x.stride()
    steps = [s * step for s, step in zip(space, stride, strict=True)]
    within = [s * step for s, step in zip(space, dilation, strict=True)]
    size = (len(x), groups, *positions, x.shape[2], *kernel)
    return x.as_strided(size, (b, group, *steps, channel, *within))


RULES = {"ConvolutionBackward0": convolution}
