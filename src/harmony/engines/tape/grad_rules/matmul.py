"""Linear maps: mm, addmm, bmm, baddbmm, mv. A linear layer is an ``addmm`` or ``mm`` on flattened rows."""

from collections.abc import Callable

from torch import Tensor

from harmony.engines.tape.param_use import BroadcastUse, MatmulUse, Site
from harmony.engines.tape.sample_block import SampleBlock, grouped


def product(left: str, right: str, first: int = 0) -> Callable[[Site], MatmulUse | BroadcastUse | None]:
    """The rule of ``beta * self + alpha * left @ right``, or of ``left @ right`` where ``first`` is 0.

    Args:
        left: The name under which autograd saves the left factor, (n, rows, i) or (rows, i).
        right: That of the right one, (n, i, o) or (i, o).
        first: Number of the input that is the left factor.
    """

    def rule(site: Site) -> MatmulUse | BroadcastUse | None:
        if site.slot < first:
            return BroadcastUse(site, scale=site.saved("beta").conjugate())
        is_right = site.slot > first
        partner = site.saved(left if is_right else right)
        return _linear_map(site, partner, is_right, site.saved("alpha") if first else 1.0)

    return rule


def _linear_map(site: Site, partner: Tensor | None, is_right: bool, alpha: complex) -> MatmulUse | None:
    """``out = alpha * left @ right``, with or without a leading axis, by the factor that is not common."""
    batched = len(site.output) - 2  # 1 for bmm, 0 for mm
    if site.layout.axis != (batched if is_right else batched + 1) or partner is None:
        return None
    t = site.layout.rows
    plain = not batched and is_right and site.layout.contiguous

    def rows(x: Tensor, block: SampleBlock) -> Tensor:
        """(g, n, t, features)."""
        if plain:  # the common case, in the fewest steps
            return x[block.samples.start * t : block.samples.stop * t].view(block.groups, 1, block.size * t, -1)
        x = grouped(x, site.layout, block)  # (g, size, [n,] t, f), or (g, size, [n,] f, t) where the left is common
        x = x if is_right else x.mT
        return x.movedim(2, 1).flatten(2, 3) if batched else x.flatten(1, 2).unsqueeze(1)

    def scaled(x: Tensor, block: SampleBlock) -> Tensor:
        return rows(x, block) if alpha == 1 else rows(x, block) * alpha.conjugate()

    features, outputs = (partner.shape[-1], site.output[-1]) if is_right else (partner.shape[-2], site.output[-2])
    sizes = (site.output[0] if batched else 1, t, features, outputs)
    factor = _conjugate(partner)
    return MatmulUse(site, lambda block: rows(factor, block), scaled, sizes, out_first=not is_right, views=alpha == 1)


def mv(site: Site) -> MatmulUse | None:
    """``self @ vec`` with rows of samples and a common vector: a linear map to one feature."""
    matrix = site.saved("self")
    if site.slot != 1 or matrix is None or site.layout.axis != 0:
        return None
    matrix = _conjugate(matrix)

    def rows(x: Tensor, block: SampleBlock) -> Tensor:
        return grouped(x, site.layout, block).flatten(1, 2).unsqueeze(1)

    def right(grad: Tensor, block: SampleBlock) -> Tensor:
        return rows(grad.unsqueeze(-1), block)

    sizes = (1, site.layout.rows, matrix.shape[1], 1)
    return MatmulUse(site, lambda block: rows(matrix, block), right, sizes, out_first=False, views=True)


def _conjugate(x: Tensor) -> Tensor:
    return x.conj() if x.is_complex() else x


RULES = {
    "MmBackward0": product("self", "mat2"),
    "AddmmBackward0": product("mat1", "mat2", first=1),
    "BmmBackward0": product("self", "mat2"),
    "BaddbmmBackward0": product("batch1", "batch2", first=1),
    "MvBackward0": mv,
}
