"""Scale and shift of layer, group and batch normalisation (the latter in eval mode)."""

import torch
from torch import Tensor

from harmony.engines.precision import accumulating
from harmony.engines.tape.param_use import BroadcastUse, Site
from harmony.engines.tape.sample_block import SampleBlock, grouped, split


def layer_norm(site: Site) -> BroadcastUse | None:
    """Scale and shift over the last axes."""
    if site.slot == 2:
        return BroadcastUse(site)
    if site.slot != 1 or site.layout.axis >= len(site.output) - len(site.shape):
        return None
    saved = [site.saved(name) for name in ("input", "result1", "result2")]

    def normalized(block: SampleBlock) -> Tensor:
        x, mean, rstd = (accumulating(grouped(tensor, site.layout, block)) for tensor in saved)
        return (x - mean) * rstd

    return BroadcastUse(site, normalized)


def group_norm(site: Site) -> BroadcastUse | None:
    """Scale and shift of the channels, axis 1, each normalised with its group."""
    if site.layout.axis != 0 or site.slot == 0:
        return None
    saved = [site.saved(name) for name in ("input", "result1", "result2")]
    groups = site.saved("group")

    def normalized(block: SampleBlock) -> Tensor:
        x, mean, rstd = (accumulating(grouped(tensor, site.layout, block)) for tensor in saved)
        by_group = split(x, 3, (groups, -1)).flatten(4)  # (g, size, n, groups, channels / groups * space)
        return ((by_group - mean[..., None]) * rstd[..., None]).view(x.shape)

    return BroadcastUse(site, normalized if site.slot == 1 else None, spread=over_channels(site))


def batch_norm(site: Site) -> BroadcastUse | None:
    """Scale and shift of the channels, axis 1, by running statistics."""
    if site.layout.axis != 0 or site.slot == 0 or site.saved("training"):
        return None
    shape = over_channels(site)
    x: Tensor = site.saved("input")
    mean = site.saved("running_mean").view(shape)
    rstd = torch.rsqrt(site.saved("running_var").view(shape) + site.saved("eps"))

    def normalized(block: SampleBlock) -> Tensor:
        centred: Tensor = grouped(x, site.layout, block) - mean
        return centred * rstd

    return BroadcastUse(site, normalized if site.slot == 1 else None, spread=shape)


def over_channels(site: Site) -> torch.Size:
    """Shape (c, 1, ...) by which a vector over channels broadcasts against (b, c, *space)."""
    return torch.Size((*site.shape, *[1] * (len(site.output) - 2)))


RULES = {
    "NativeLayerNormBackward0": layer_norm,
    "NativeGroupNormBackward0": group_norm,
    "NativeBatchNormBackward0": batch_norm,
}
