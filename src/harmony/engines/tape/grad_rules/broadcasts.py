"""Uses that broadcast: sums, factors, copies, and the scale and shift of normalisations (of batches, in eval mode)."""

from collections.abc import Callable

import torch
from torch import Tensor

from harmony.engines.precision import accumulating
from harmony.engines.tape.param_use import BroadcastUse
from harmony.engines.tape.sample_block import SampleBlock, grouped, split
from harmony.engines.tape.site import Site


def summand(sign: int) -> Callable[[Site], BroadcastUse]:
    """The rule of ``self + sign * alpha * other``."""
    return lambda site: BroadcastUse(site, scale=sign * site.saved("alpha").conjugate() if site.slot == 1 else 1.0)


def mul(site: Site) -> BroadcastUse | None:
    """``self * other``."""
    partner = site.saved("other" if site.slot == 0 else "self")
    return BroadcastUse(site, lambda block: _partner(site, partner, block)) if isinstance(partner, Tensor) else None


def div(site: Site) -> BroadcastUse | None:
    """``self / other``."""
    x, other = site.saved("self"), site.saved("other")
    if not isinstance(other, Tensor):
        return None

    def factor(block: SampleBlock) -> Tensor:
        divisor = _partner(site, other, block)
        return 1 / divisor if site.slot == 0 else -_partner(site, x, block) / divisor / divisor

    return BroadcastUse(site, factor)


def _partner(site: Site, partner: Tensor, block: SampleBlock) -> Tensor:
    partner = accumulating(site.grouped(partner, block))
    return partner.conj() if partner.is_complex() else partner


def where(site: Site) -> BroadcastUse:
    """``where(condition, self, other)``."""
    condition = site.saved("condition").bool()
    chosen = condition if site.slot == 0 else ~condition
    return BroadcastUse(site, lambda block: site.grouped(chosen, block))


def prelu(site: Site) -> BroadcastUse | None:
    """``where(self > 0, self, weight * self)``."""
    if site.slot != 1:
        return None
    x = site.saved("self")
    return BroadcastUse(site, lambda block: accumulating(site.grouped(x, block)).clamp(max=0))


def masked_put(site: Site) -> BroadcastUse | None:
    """``self[mask] = value``."""
    indices = site.saved("indices")
    mask = indices[0] if len(indices) == 1 else None
    if site.slot != 1 or mask is None or mask.dtype != torch.bool or site.place.axis >= mask.ndim:
        return None
    mask = mask.view(*mask.shape, *[1] * (len(site.output) - mask.ndim))
    return BroadcastUse(site, lambda block: site.grouped(mask, block))


def _sum_tiles(x: Tensor, shape: torch.Size) -> Tensor:
    """Sum (g, size, *tiles) over the group and the tiles: (g, *shape)."""
    x = x.flatten(1, x.ndim - 1 - len(shape))
    tiles = [n for wide, narrow in zip(x.shape[2:], shape, strict=True) for n in (wide // narrow, narrow)]
    return x.reshape(*x.shape[:2], *tiles).sum([1, *range(2, 2 + len(tiles), 2)])


def layer_norm(site: Site) -> BroadcastUse | None:
    """Scale and shift over the last axes."""
    if site.slot == 2:
        return BroadcastUse(site)
    if site.slot != 1 or site.place.axis >= len(site.output) - len(site.input):
        return None
    return BroadcastUse(site, _normalized(site))


def group_norm(site: Site) -> BroadcastUse | None:
    """Scale and shift of the channels, axis 1, each normalised with its group."""
    if site.place.axis != 0 or site.slot == 0:
        return None
    factor = _normalized(site, site.saved("group")) if site.slot == 1 else None
    return BroadcastUse(site, factor, spread=over_channels(site))


def _normalized(site: Site, groups: int | None = None) -> Callable[[SampleBlock], Tensor]:
    """The input, normalised by the saved mean and reciprocal deviation of each row, or of each group of channels."""
    saved = [site.saved(name) for name in ("input", "result1", "result2")]

    def normalized(block: SampleBlock) -> Tensor:
        x, mean, rstd = (accumulating(grouped(tensor, site.place, block)) for tensor in saved)
        if groups is None:
            return (x - mean) * rstd
        by_group = split(x, 3, (groups, -1)).flatten(4)  # (g, size, n, groups, channels / groups * space)
        return ((by_group - mean[..., None]) * rstd[..., None]).view(x.shape)

    return normalized


def batch_norm(site: Site) -> BroadcastUse | None:
    """Scale and shift of the channels, axis 1, by running statistics."""
    if site.place.axis != 0 or site.slot == 0 or site.saved("training"):
        return None
    shape = over_channels(site)
    x: Tensor = site.saved("input")
    mean = site.saved("running_mean").view(shape)
    rstd = torch.rsqrt(site.saved("running_var").view(shape) + site.saved("eps"))

    def normalized(block: SampleBlock) -> Tensor:
        centred: Tensor = grouped(x, site.place, block) - mean
        return centred * rstd

    return BroadcastUse(site, normalized if site.slot == 1 else None, spread=shape)


def over_channels(site: Site) -> torch.Size:
    """Shape (c, 1, ...) by which a vector over channels broadcasts against (b, c, *space)."""
    return torch.Size((*site.input, *[1] * (len(site.output) - 2)))


RULES: dict[str, Callable[[Site], BroadcastUse | None]] = {
    "AddBackward0": summand(1),
    "SubBackward0": summand(-1),
    "MulBackward0": mul,
    "DivBackward0": div,
    "WhereBackward0": where,
    "IndexPutBackward0": masked_put,
    "PreluKernelBackward0": prelu,
    "ExpandBackward0": BroadcastUse,
    "RepeatBackward0": lambda site: BroadcastUse(site, total=_sum_tiles),
    "NativeLayerNormBackward0": layer_norm,
    "NativeGroupNormBackward0": group_norm,
    "NativeBatchNormBackward0": batch_norm,
}
