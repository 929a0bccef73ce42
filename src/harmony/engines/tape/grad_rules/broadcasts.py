"""Uses that broadcast: sums, factors, copies, and the scale and shift of normalisations (of batches, in eval mode)."""

from collections.abc import Callable

import torch
from torch import Tensor

from harmony.engines.precision import accumulating
from harmony.engines.tape.param_use import BroadcastUse, Saved
from harmony.engines.tape.sample_block import SampleBlock, grouped, split
from harmony.engines.tape.site import Geometry, Site


def summand(sign: int) -> Callable[[Site], BroadcastUse]:
    """The rule of ``self + sign * alpha * other``."""
    return lambda s: BroadcastUse(s.geometry, scale=sign * s.saved("alpha").conjugate() if s.slot == 1 else 1.0)


def mul(site: Site) -> BroadcastUse | None:
    """``self * other``."""
    at, name = site.geometry, "other" if site.slot == 0 else "self"
    is_tensor = isinstance(site.saved(name), Tensor)
    return BroadcastUse(at, lambda saved, block: _partner(at, saved[name], block), (name,)) if is_tensor else None


def div(site: Site) -> BroadcastUse | None:
    """``self / other``."""
    at = site.geometry
    if not isinstance(site.saved("other"), Tensor):
        return None

    def factor(saved: Saved, block: SampleBlock) -> Tensor:
        divisor = _partner(at, saved["other"], block)
        return 1 / divisor if at.slot == 0 else -_partner(at, saved["self"], block) / divisor / divisor

    return BroadcastUse(at, factor, ("self", "other") if at.slot == 1 else ("other",))


def _partner(site: Geometry, partner: Tensor, block: SampleBlock) -> Tensor:
    partner = accumulating(site.grouped(partner, block))
    return partner.conj() if partner.is_complex() else partner


def where(site: Site) -> BroadcastUse:
    """``where(condition, self, other)``."""
    at = site.geometry

    def chosen(saved: Saved, block: SampleBlock) -> Tensor:
        condition = saved["condition"].bool()
        return at.grouped(condition if at.slot == 0 else ~condition, block)

    return BroadcastUse(at, chosen, ("condition",))


def prelu(site: Site) -> BroadcastUse | None:
    """``where(self > 0, self, weight * self)``."""
    at = site.geometry
    if at.slot != 1:
        return None
    return BroadcastUse(at, lambda saved, block: _partner(at, saved["self"], block).clamp(max=0), ("self",))


def masked_put(site: Site) -> BroadcastUse | None:
    """``self[mask] = value``."""
    at, indices = site.geometry, site.saved("indices")
    mask = indices[0] if len(indices) == 1 else None
    if at.slot != 1 or mask is None or mask.dtype != torch.bool or at.place.axis >= mask.ndim:
        return None

    def chosen(saved: Saved, block: SampleBlock) -> Tensor:
        (mask,) = saved["indices"]
        return at.grouped(mask.view(*mask.shape, *[1] * (len(at.output) - mask.ndim)), block)

    return BroadcastUse(at, chosen, ("indices",))


def _sum_tiles(x: Tensor, shape: torch.Size) -> Tensor:
    """Sum (g, size, *tiles) over the group and the tiles: (g, *shape)."""
    x = x.flatten(1, x.ndim - 1 - len(shape))
    tiles = [n for wide, narrow in zip(x.shape[2:], shape, strict=True) for n in (wide // narrow, narrow)]
    return x.reshape(*x.shape[:2], *tiles).sum([1, *range(2, 2 + len(tiles), 2)])


def layer_norm(site: Site) -> BroadcastUse | None:
    """Scale and shift over the last axes."""
    if site.slot == 2:
        return BroadcastUse(site.geometry)
    if site.slot != 1 or site.place.axis >= len(site.output) - len(site.input):
        return None
    return BroadcastUse(site.geometry, _normalized(site.geometry), _NORMALIZED)


def group_norm(site: Site) -> BroadcastUse | None:
    """Scale and shift of the channels, axis 1, each normalised with its group."""
    if site.place.axis != 0 or site.slot == 0:
        return None
    if site.slot == 2:
        return BroadcastUse(site.geometry, spread=over_channels(site))
    factor = _normalized(site.geometry, site.saved("group"))
    return BroadcastUse(site.geometry, factor, _NORMALIZED, spread=over_channels(site))


_NORMALIZED = ("input", "result1", "result2")


def _normalized(site: Geometry, groups: int | None = None) -> Callable[[Saved, SampleBlock], Tensor]:
    """The input, normalised by the saved mean and reciprocal deviation of each row, or of each group of channels."""

    def normalized(saved: Saved, block: SampleBlock) -> Tensor:
        x, mean, rstd = (accumulating(grouped(saved[name], site.place, block)) for name in _NORMALIZED)
        if groups is None:
            return (x - mean) * rstd
        by_group = split(x, 3, (groups, -1)).flatten(4)  # (g, size, n, groups, channels / groups * space)
        return ((by_group - mean[..., None]) * rstd[..., None]).view(x.shape)

    return normalized


def batch_norm(site: Site) -> BroadcastUse | None:
    """Scale and shift of the channels, axis 1, by running statistics."""
    if site.place.axis != 0 or site.slot == 0 or site.saved("training"):
        return None
    at, shape, eps = site.geometry, over_channels(site), site.saved("eps")
    if at.slot == 2:
        return BroadcastUse(at, spread=shape)

    def normalized(saved: Saved, block: SampleBlock) -> Tensor:
        centred: Tensor = grouped(saved["input"], at.place, block) - saved["running_mean"].view(shape)
        return centred * torch.rsqrt(saved["running_var"].view(shape) + eps)

    return BroadcastUse(at, normalized, ("input", "running_mean", "running_var"), spread=shape)


def over_channels(site: Geometry) -> torch.Size:
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
    "ExpandBackward0": lambda site: BroadcastUse(site.geometry),
    "RepeatBackward0": lambda site: BroadcastUse(site.geometry, total=_sum_tiles),
    "NativeLayerNormBackward0": layer_norm,
    "NativeGroupNormBackward0": group_norm,
    "NativeBatchNormBackward0": batch_norm,
}
