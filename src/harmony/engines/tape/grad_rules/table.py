"""Rows of a common table: embeddings, and indexing by one tensor of indices."""

import torch
from torch import Tensor

from harmony.engines.tape.param_use import MatmulUse, Site
from harmony.engines.tape.sample_block import SampleBlock, grouped


def embedding(site: Site) -> MatmulUse | None:
    """``weight[indices]``; the row at ``padding_idx`` gets no gradient."""
    if site.saved("scale_grad_by_freq"):  # counts words over the whole batch
        return None
    padding = site.saved("padding_idx")
    return _rows(site, site.saved("indices"), padding if padding < site.shape[0] else None)


def index(site: Site) -> MatmulUse | None:
    """``table[indices]`` with one integer tensor on the first axis."""
    first, *rest = site.saved("indices") or [None]
    if first is None or first.dtype in (torch.bool, torch.uint8) or any(i is not None for i in rest):
        return None
    return _rows(site, first % site.shape[0])


def index_select(site: Site) -> MatmulUse | None:
    """``index_select(table, 0, indices)``."""
    return None if site.saved("dim") != 0 else _rows(site, site.saved("index"))


def _rows(site: Site, indices: Tensor, padding: int | None = None) -> MatmulUse | None:
    if site.layout.axis >= indices.ndim or indices.shape != site.output[: indices.ndim]:
        return None
    width = site.shape[1:].numel()

    def left(block: SampleBlock) -> Tensor:
        return grouped(indices, site.layout, block).reshape(block.groups, 1, -1)

    def right(grad: Tensor, block: SampleBlock) -> Tensor:
        rows = grouped(grad, site.layout, block).reshape(block.groups, 1, -1, width)
        return rows if padding is None else rows.masked_fill((left(block) == padding).unsqueeze(-1), 0)

    rows = site.layout.rows * (indices.numel() // indices.shape[site.layout.axis])
    return MatmulUse(site, left, right, (1, rows, site.shape[0], width), out_first=False, table=True)


RULES = {"EmbeddingBackward0": embedding, "IndexBackward0": index, "IndexSelectBackward0": index_select}
