"""Uses that are sums of outer products: linear maps, convolutions as products over windows, tables of embeddings."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harmony.engines.tape.grad_rules.broadcasts import over_channels
from harmony.engines.tape.param_use import BroadcastUse, MatmulUse, Saved
from harmony.engines.tape.sample_block import SampleBlock, grouped, split
from harmony.engines.tape.site import Geometry, Site


def product(left: str, right: str, first: int = 0) -> Callable[[Site], MatmulUse | BroadcastUse | None]:
    """The rule of ``left @ right``, or of ``beta * self + alpha * left @ right``, where the left factor is input 1."""

    def rule(site: Site) -> MatmulUse | BroadcastUse | None:
        if site.slot < first:
            return BroadcastUse(site.geometry, scale=site.saved("beta").conjugate())
        is_right = site.slot > first
        partner = left if is_right else right
        if site.saved(partner) is None:
            return None
        return _linear_map(site.geometry, partner, is_right, site.saved("alpha") if first else 1.0)

    return rule


def _linear_map(site: Geometry, partner: str, is_right: bool, alpha: complex) -> MatmulUse | None:
    """``out = alpha * left @ right``, with or without a leading axis, by the factor that is not common."""
    batched = len(site.output) - 2  # 1 for bmm, 0 for mm
    if site.place.axis != (batched if is_right else batched + 1):
        return None
    t = site.place.rows
    plain = not batched and is_right and site.place.contiguous

    def rows(x: Tensor, block: SampleBlock) -> Tensor:
        """(g n, t, features)."""
        x = x[:, None] if x.ndim == 1 else x
        if plain:  # the common case, in the fewest steps
            return x[block.samples.start * t : block.samples.stop * t].view(block.groups, block.size * t, -1)
        x = grouped(x, site.place, block)
        # (g, size, [n,] t, f), or (g, size, [n,] f, t) where the left is common
        x = x if is_right else x.mT
        return x.movedim(2, 1).flatten(2, 3).flatten(0, 1) if batched else x.flatten(1, 2)

    def factor(saved: Saved, block: SampleBlock) -> Tensor:
        x = rows(saved[partner], block)
        return x.conj() if x.is_complex() else x

    def scaled(saved: Saved, x: Tensor, block: SampleBlock) -> Tensor:
        return rows(x, block) if alpha == 1 else rows(x, block) * alpha.conjugate()

    features, outputs = (site.input[-2], site.output[-1]) if is_right else (site.input[-1], site.output[-2])
    n = site.output[0] if batched else 1
    # Rows that lie apart, or before the axis of the products, are copied.
    copied = 0 if plain else n * t * (features + outputs)
    sizes = n, t, features, outputs
    return MatmulUse(site, factor, scaled, (partner,), sizes, out_first=not is_right, copied=copied)


def mv(site: Site) -> MatmulUse | None:
    """``self @ vec`` with rows of samples and a common vector: a linear map to one feature."""
    if site.slot != 1:
        return None
    inputs = [shape if shape is None else torch.Size((*shape, 1)) for shape in site.inputs]
    column = replace(site.geometry, number=0, outputs=[torch.Size((*site.output, 1))], inputs=inputs)
    use = _linear_map(column, "self", is_right=True, alpha=1.0)
    return use and replace(use, site=site.geometry)


def convolution(site: Site) -> MatmulUse | BroadcastUse | None:
    """Weight (o, i / groups, *kernel), transposed (i, o / groups, *kernel), or bias (o,)."""
    at = site.geometry
    if at.place.axis != 0 or at.slot == 0:
        return None
    if at.slot == 2:
        return BroadcastUse(at, spread=over_channels(at))
    groups, transposed = site.saved("groups"), site.saved("transposed")
    kernel, x_shape = at.input[2:], site.saved("input").shape
    geometry = kernel, site.saved("stride"), site.saved("padding"), site.saved("dilation")
    # A transposed convolution is the gradient of a convolution: input and output change places.
    windowed, plain = (at.output, x_shape) if transposed else (x_shape, at.output)
    wide, narrow = windowed[1] // groups * math.prod(kernel), plain[1] // groups

    def windows(image: Tensor, positions: Sequence[int], block: SampleBlock) -> Tensor:
        """(g groups, t, channels / groups * kernel)."""
        image = grouped(image, at.place, block)
        folded = unfold(image.flatten(0, 2), groups, geometry, positions)  # (g size n, groups, *positions, c, *kernel)
        folded = split(folded, 0, (block.groups, -1)).movedim(2, 1)
        return folded.reshape(block.groups * groups, -1, wide)

    def pixels(image: Tensor, block: SampleBlock) -> Tensor:
        """(g groups, t, channels / groups)."""
        image = split(grouped(image, at.place, block).flatten(3), 3, (groups, narrow, -1))
        image = image.permute(0, 3, 1, 2, 5, 4)  # of (g, size, n, groups, c, positions)
        return image.flatten(2, 4).flatten(0, 1)

    def factor(saved: Saved, block: SampleBlock) -> Tensor:
        x = saved["input"]
        return pixels(x, block) if transposed else windows(x, at.output[2:], block)

    def sent(saved: Saved, grad: Tensor, block: SampleBlock) -> Tensor:
        return windows(grad, saved["input"].shape[2:], block) if transposed else pixels(grad, block)

    t = at.place.rows * math.prod(plain[2:])
    sizes = (groups, t, narrow, wide) if transposed else (groups, t, wide, narrow)
    copied = groups * t * (wide + narrow)
    return MatmulUse(at, factor, sent, ("input",), sizes, out_first=not transposed, copied=copied)


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
    return _rows(site, "indices", lambda saved: saved, padding if padding < site.input[0] else None)


def index(site: Site) -> MatmulUse | None:
    """``table[indices]`` with one integer tensor on the first axis."""
    first, *rest = site.saved("indices") or [None]
    if first is None or first.dtype in (torch.bool, torch.uint8) or any(i is not None for i in rest):
        return None
    length = site.input[0]
    return _rows(site, "indices", lambda saved: saved[0] % length)


def index_select(site: Site) -> MatmulUse | None:
    """``index_select(table, 0, indices)``."""
    return None if site.saved("dim") != 0 else _rows(site, "index", lambda saved: saved)


def _rows(site: Site, name: str, indices_of: Callable[[Any], Tensor], padding: int | None = None) -> MatmulUse | None:
    at, shape = site.geometry, indices_of(site.saved(name)).shape
    if at.place.axis >= len(shape) or shape != at.output[: len(shape)]:
        return None
    width = at.input[1:].numel()

    def left(saved: Saved, block: SampleBlock) -> Tensor:
        return grouped(indices_of(saved[name]), at.place, block).reshape(block.groups, -1)

    def right(saved: Saved, grad: Tensor, block: SampleBlock) -> Tensor:
        rows = grouped(grad, at.place, block).reshape(block.groups, -1, width)
        return rows if padding is None else rows.masked_fill((left(saved, block) == padding).unsqueeze(-1), 0)

    rows = at.place.rows * (shape.numel() // shape[at.place.axis])
    copied = 0 if padding is None else rows * width
    sizes = 1, rows, at.input[0], width
    return MatmulUse(at, left, right, (name,), sizes, out_first=False, table=True, copied=copied)


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
