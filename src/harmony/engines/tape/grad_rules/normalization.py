"""Scale and shift of layer, group and batch normalisation (the latter in eval mode)."""

import torch
from torch import Tensor

from harmony.engines.precision import accumulating
from harmony.engines.tape.layout import SampleBlock, grouped, split
from harmony.engines.tape.param_use import BroadcastUse, Site


def layer_norm(site: Site) -> BroadcastUse | None:
    """Scale and shift over the last axes."""
    node = site.node
    if site.slot == 2:
        return BroadcastUse(site)
    if site.slot != 1 or site.layout.axis >= len(site.output) - len(site.shape):
        return None
    x, mean, rstd = node._saved_input, node._saved_result1, node._saved_result2  # type: ignore[attr-defined]

    def normalized(part: SampleBlock) -> Tensor:
        x_part, mean_part, rstd_part = (accumulating(grouped(t, site.layout, part)) for t in (x, mean, rstd))
        return (x_part - mean_part) * rstd_part

    return BroadcastUse(site, normalized)


def group_norm(site: Site) -> BroadcastUse | None:
    """Scale and shift of the channels, axis 1, each normalised with its group."""
    node = site.node
    if site.layout.axis != 0:
        return None
    spread = _channels(site)
    if site.slot == 2:
        return BroadcastUse(site, spread=spread)
    x, mean, rstd = node._saved_input, node._saved_result1, node._saved_result2  # type: ignore[attr-defined]
    groups = node._saved_group  # type: ignore[attr-defined]

    def normalized(part: SampleBlock) -> Tensor:
        x_part, mean_part, rstd_part = (accumulating(grouped(t, site.layout, part)) for t in (x, mean, rstd))
        by_group = split(x_part, 3, (groups, -1)).flatten(4)  # (g, size, n, groups, channels / groups * space)
        return ((by_group - mean_part[..., None]) * rstd_part[..., None]).view(x_part.shape)

    return BroadcastUse(site, spread=spread, factor=normalized)


def batch_norm(site: Site) -> BroadcastUse | None:
    """Scale and shift of the channels, axis 1, by running statistics."""
    node = site.node
    if site.layout.axis != 0 or node._saved_training:  # type: ignore[attr-defined]
        return None
    spread = _channels(site)
    if site.slot == 2:
        return BroadcastUse(site, spread=spread)
    x, eps = node._saved_input, node._saved_eps  # type: ignore[attr-defined]
    over_channels = [-1, *[1] * (x.ndim - 2)]
    mean = node._saved_running_mean.view(over_channels)  # type: ignore[attr-defined]
    rstd = torch.rsqrt(node._saved_running_var.view(over_channels) + eps)  # type: ignore[attr-defined]
    return BroadcastUse(site, spread=spread, factor=lambda part: (grouped(x, site.layout, part) - mean) * rstd)


def _channels(site: Site) -> torch.Size:
    """Shape (c, 1, ...) by which a vector over channels broadcasts against (b, c, *space)."""
    return torch.Size((*site.shape, *[1] * (len(site.output) - 2)))


RULES = {
    "NativeLayerNormBackward0": layer_norm,
    "NativeGroupNormBackward0": group_norm,
    "NativeBatchNormBackward0": batch_norm,
}
