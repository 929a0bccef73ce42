"""Uses that are sums of outer products: linear maps, convolutions as products over windows, tables of embeddings."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from harmony.engines.tape.grad_rules.broadcasts import over_channels
from harmony.engines.tape.param_use import BroadcastUse, MatmulUse
from harmony.engines.tape.sample_block import SampleBlock, grouped, split
from harmony.engines.tape.site import Site


def product(left: str, right: str, first: int = 0) -> Callable[[Site], MatmulUse | BroadcastUse | None]:
    """The rule of ``left @ right``, or of ``beta * self + alpha * left @ right``, where the left factor is input 1."""

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
    if site.place.axis != (batched if is_right else batched + 1) or partner is None:
        return None
    t = site.place.rows
    plain = not batched and is_right and site.place.contiguous

    def rows(x: Tensor, block: SampleBlock) -> Tensor:
        """(g, n, t, features)."""
        if plain:  # the common case, in the fewest steps
            return x[block.samples.start * t : block.samples.stop * t].view(block.groups, 1, block.size * t, -1)
        x = grouped(x[:, None] if x.ndim == 1 else x, site.place, block)
        # (g, size, [n,] t, f), or (g, size, [n,] f, t) where the left is common
        x = x if is_right else x.mT
        return x.movedim(2, 1).flatten(2, 3) if batched else x.flatten(1, 2).unsqueeze(1)

    def scaled(x: Tensor, block: SampleBlock) -> Tensor:
        return rows(x, block) if alpha == 1 else rows(x, block) * alpha.conjugate()

    features, outputs = (partner.shape[-1], site.output[-1]) if is_right else (partner.shape[-2], site.output[-2])
    sizes = (site.output[0] if batched else 1, t, features, outputs)
    factor = partner.conj() if partner.is_complex() else partner
    return MatmulUse(site, lambda block: rows(factor, block), scaled, sizes, out_first=not is_right, views=alpha == 1)


def mv(site: Site) -> MatmulUse | None:
    """``self @ vec`` with rows of samples and a common vector: a linear map to one feature."""
    column = site._replace(number=0, outputs=[torch.Size((*site.output, 1))])
    return _linear_map(column, site.saved("self"), is_right=True, alpha=1.0) if site.slot == 1 else None


def convolution(site: Site) -> MatmulUse | BroadcastUse | None:
    """Weight (o, i / groups, *kernel), transposed (i, o / groups, *kernel), or bias (o,)."""
    if site.place.axis != 0 or site.slot == 0:
        return None
    if site.slot == 2:
        return BroadcastUse(site, spread=over_channels(site))
    x, groups, transposed = site.saved("input"), site.saved("groups"), site.saved("transposed")
    kernel = site.input[2:]
    geometry = kernel, site.saved("stride"), site.saved("padding"), site.saved("dilation")
    # A transposed convolution is the gradient of a convolution: input and output change places.
    windowed, plain = (site.output, x.shape) if transposed else (x.shape, site.output)
    positions = plain[2:]
    wide, narrow = windowed[1] // groups * math.prod(kernel), plain[1] // groups

    def windows(image: Tensor, block: SampleBlock) -> Tensor:
        """(g, groups, t, channels / groups * kernel)."""
        image = grouped(image, site.place, block)
        folded = unfold(image.flatten(0, 2), groups, geometry, positions)  # (g size n, groups, *positions, c, *kernel)
        return split(folded, 0, (block.groups, -1)).movedim(2, 1).reshape(block.groups, groups, -1, wide)

    def pixels(image: Tensor, block: SampleBlock) -> Tensor:
        """(g, groups, t, channels / groups)."""
        image = split(grouped(image, site.place, block).flatten(3), 3, (groups, -1, math.prod(positions)))
        return image.permute(0, 3, 1, 2, 5, 4).flatten(2, 4)  # of (g, size, n, groups, c, positions)

    n, t = groups, site.place.rows * math.prod(positions)
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


def embedding(site: Site) -> MatmulUse | None:
    """``weight[indices]``; the row at ``padding_idx`` gets no gradient."""
    if site.saved("scale_grad_by_freq"):  # counts words over the whole batch
        return None
    padding = site.saved("padding_idx")
    return _rows(site, site.saved("indices"), padding if padding < site.input[0] else None)


def index(site: Site) -> MatmulUse | None:
    """``table[indices]`` with one integer tensor on the first axis."""
    first, *rest = site.saved("indices") or [None]
    if first is None or first.dtype in (torch.bool, torch.uint8) or any(i is not None for i in rest):
        return None
    return _rows(site, first % site.input[0])


def index_select(site: Site) -> MatmulUse | None:
    """``index_select(table, 0, indices)``."""
    return None if site.saved("dim") != 0 else _rows(site, site.saved("index"))


def _rows(site: Site, indices: Tensor, padding: int | None = None) -> MatmulUse | None:
    if site.place.axis >= indices.ndim or indices.shape != site.output[: indices.ndim]:
        return None
    width = site.input[1:].numel()

    def left(block: SampleBlock) -> Tensor:
        return grouped(indices, site.place, block).reshape(block.groups, 1, -1)

    def right(grad: Tensor, block: SampleBlock) -> Tensor:
        rows = grouped(grad, site.place, block).reshape(block.groups, 1, -1, width)
        return rows if padding is None else rows.masked_fill((left(block) == padding).unsqueeze(-1), 0)

    rows = site.place.rows * (indices.numel() // indices.shape[site.place.axis])
    return MatmulUse(site, left, right, (1, rows, site.input[0], width), out_first=False, table=True)


RULES = {
    "MmBackward0": product("self", "mat2"),
    "AddmmBackward0": product("mat1", "mat2", first=1),
    "BmmBackward0": product("self", "mat2"),
    "BaddbmmBackward0": product("batch1", "batch2", first=1),
    "MvBackward0": mv,
    "ConvolutionBackward0": convolution,
    "EmbeddingBackward0": embedding,
    "IndexBackward0": index,
    "IndexSelectBackward0": index_select,
}
