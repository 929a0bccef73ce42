"""Elementwise ops that broadcast a shared tensor, and ops that copy it to every sample."""

import torch
from torch import Tensor

from harmony.engines.precision import accumulating
from harmony.engines.tape.layout import SampleBlock
from harmony.engines.tape.param_use import BroadcastUse, Site


def add(site: Site) -> BroadcastUse:
    """``self + alpha * other``."""
    return BroadcastUse(site, scale=_alpha(site) if site.slot == 1 else 1.0)


def sub(site: Site) -> BroadcastUse:
    """``self - alpha * other``."""
    return BroadcastUse(site, scale=-_alpha(site) if site.slot == 1 else 1.0)


def mul(site: Site) -> BroadcastUse | None:
    """``self * other``."""
    partner = site.node._saved_other if site.slot == 0 else site.node._saved_self  # type: ignore[attr-defined]
    return _times(site, partner)


def div(site: Site) -> BroadcastUse | None:
    """``self / other``."""
    x, other = site.node._saved_self, site.node._saved_other  # type: ignore[attr-defined]
    if not isinstance(other, Tensor):
        return None

    def factor(part: SampleBlock) -> Tensor:
        divisor = _partner(site, other, part)
        return 1 / divisor if site.slot == 0 else -_partner(site, x, part) / divisor / divisor

    return BroadcastUse(site, factor)


def where(site: Site) -> BroadcastUse:
    """``where(condition, self, other)``."""
    condition = site.node._saved_condition.bool()  # type: ignore[attr-defined]
    chosen = condition if site.slot == 0 else ~condition
    return BroadcastUse(site, lambda part: site.grouped(chosen, part))


def prelu(site: Site) -> BroadcastUse | None:
    """``where(self > 0, self, weight * self)``."""
    if site.slot != 1:
        return None
    x = site.node._saved_self  # type: ignore[attr-defined]
    return BroadcastUse(site, lambda part: accumulating(site.grouped(x, part)).clamp(max=0))


def masked_put(site: Site) -> BroadcastUse | None:
    """``self[mask] = value``."""
    indices = site.node._saved_indices  # type: ignore[attr-defined]
    mask = indices[0] if len(indices) == 1 else None
    if site.slot != 1 or mask is None or mask.dtype != torch.bool or site.layout.axis >= mask.ndim:
        return None
    mask = mask.view(*mask.shape, *[1] * (len(site.output) - mask.ndim))
    return BroadcastUse(site, lambda part: site.grouped(mask, part))


def expand(site: Site) -> BroadcastUse:
    """Copies by broadcasting."""
    return BroadcastUse(site)


def repeat(site: Site) -> BroadcastUse:
    """Copies side by side, along any axes."""
    return BroadcastUse(site, total=_sum_tiles)


def _sum_tiles(x: Tensor, shape: torch.Size) -> Tensor:
    """Sum (g, size, *tiles) over the group and the tiles: (g, *shape)."""
    x = x.flatten(1, x.ndim - 1 - len(shape))
    tiles = [n for have, want in zip(x.shape[2:], shape, strict=True) for n in (have // want, want)]
    over = [1, *range(2, 2 + len(tiles), 2)]
    return x.reshape(*x.shape[:2], *tiles).sum(over)


def _times(site: Site, partner: Tensor | None) -> BroadcastUse | None:
    if not isinstance(partner, Tensor):
        return None
    return BroadcastUse(site, lambda part: _partner(site, partner, part))


def _alpha(site: Site) -> complex:
    """What gradients are multiplied by, where ``other`` was multiplied by alpha."""
    alpha: complex = site.node._saved_alpha  # type: ignore[attr-defined]
    return alpha.conjugate()


def _partner(site: Site, partner: Tensor, part: SampleBlock) -> Tensor:
    partner = accumulating(site.grouped(partner, part))
    return partner.conj() if partner.is_complex() else partner


RULES = {
    "AddBackward0": add,
    "SubBackward0": sub,
    "MulBackward0": mul,
    "DivBackward0": div,
    "WhereBackward0": where,
    "IndexPutBackward0": masked_put,
    "PreluKernelBackward0": prelu,
    "ExpandBackward0": expand,
    "RepeatBackward0": repeat,
}
