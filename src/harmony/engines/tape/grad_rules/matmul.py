"""Linear maps: mm, addmm, bmm, baddbmm, mv. A linear layer is an ``addmm`` or ``mm`` on flattened rows."""

from collections.abc import Callable

from torch import Tensor
from torch.autograd.graph import Node

from harmony.engines.tape.layout import SampleBlock, grouped
from harmony.engines.tape.param_use import BroadcastUse, MatmulUse, Site


def product(site: Site, known: Tensor | None, slot: int, alpha: complex) -> MatmulUse | None:
    """``out = alpha * left @ right``, with or without a leading axis of products side by side.

    Args:
        site: Where.
        known: The factor that is not shared, left (n, rows, i) or (rows, i), or right (n, i, o) or (i, o).
        slot: 0 where the left is the shared one, 1 where the right is.
        alpha: Scale of the product.
    """
    batched = len(site.output) - 2  # 1 for bmm, 0 for mm
    if site.layout.axis != (batched if slot == 1 else batched + 1) or known is None:
        return None
    n = site.output[0] if batched else 1
    features = known.shape[-1] if slot == 1 else known.shape[-2]
    outputs = site.output[-1] if slot == 1 else site.output[-2]

    t = site.layout.rows
    plain = not batched and slot == 1 and site.layout.contiguous

    def rows(x: Tensor, part: SampleBlock) -> Tensor:
        """(g, n, t, features)."""
        if plain:  # the common case, in the fewest steps
            return x[part.samples.start * t : part.samples.stop * t].view(part.groups, 1, part.size * t, -1)
        x = grouped(x, site.layout, part)  # (g, size, [n,] t, f), or (g, size, [n,] f, t) where the left is shared
        if slot == 0:
            x = x.mT
        if not batched:
            return x.flatten(1, 2).unsqueeze(1)
        return x.movedim(2, 1).flatten(2, 3)

    conjugate = known.conj() if known.is_complex() else known
    scaled: Callable[[Tensor, SampleBlock], Tensor] = (
        rows if alpha == 1 else lambda g, part: rows(g, part) * alpha.conjugate()
    )
    return MatmulUse(
        site, lambda part: rows(conjugate, part), scaled, (n, site.layout.rows, features, outputs),
        out_first=slot == 0, views=alpha == 1,
    )  # fmt: skip


def mm(site: Site) -> MatmulUse | None:
    """``self @ mat2``."""
    return product(site, _saved(site.node, ("mat2", "self")[site.slot]), site.slot, 1.0)


def addmm(site: Site) -> MatmulUse | BroadcastUse | None:
    """``beta * self + alpha * mat1 @ mat2``."""
    return _added(site, "mat1", "mat2")


def baddbmm(site: Site) -> MatmulUse | BroadcastUse | None:
    """``beta * self + alpha * batch1 @ batch2``."""
    return _added(site, "batch1", "batch2")


def mv(site: Site) -> MatmulUse | None:
    """``self @ vec`` with rows of samples and a shared vector: a linear map to one feature."""
    matrix = _saved(site.node, "self")
    if site.slot != 1 or matrix is None or site.layout.axis != 0:
        return None

    def rows(x: Tensor, part: SampleBlock) -> Tensor:
        return grouped(x, site.layout, part).flatten(1, 2).unsqueeze(1)

    conjugate = matrix.conj() if matrix.is_complex() else matrix
    return MatmulUse(
        site, lambda part: rows(conjugate, part), lambda g, part: rows(g.unsqueeze(-1), part),
        (1, site.layout.rows, matrix.shape[1], 1), out_first=False, views=True,
    )  # fmt: skip


def _added(site: Site, left: str, right: str) -> MatmulUse | BroadcastUse | None:
    node = site.node
    if site.slot == 0:
        return BroadcastUse(site, scale=node._saved_beta.conjugate())  # type: ignore[attr-defined]
    alpha = node._saved_alpha  # type: ignore[attr-defined]
    return product(site, _saved(node, (right, left)[site.slot - 1]), site.slot - 1, alpha)


def _saved(node: Node, name: str) -> Tensor | None:
    tensor: Tensor | None = getattr(node, f"_saved_{name}")
    return tensor


RULES = {
    "MmBackward0": mm,
    "AddmmBackward0": addmm,
    "BmmBackward0": mm,
    "BaddbmmBackward0": baddbmm,
    "MvBackward0": mv,
}
