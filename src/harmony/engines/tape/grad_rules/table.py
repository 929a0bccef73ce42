"""Rows of a shared table: embeddings, and indexing by one tensor of indices."""

from typing import Any

import torch
from torch import Tensor

from harmony.engines.tape.layout import SampleBlock, grouped
from harmony.engines.tape.param_use import MatmulUse, Site


def embedding(site: Site) -> MatmulUse | None:
    """``weight[indices]``; the row at ``padding_idx`` gets no gradient."""
    node: Any = site.node
    if node._saved_scale_grad_by_freq:  # counts words over the whole batch
        return None
    padding = node._saved_padding_idx
    return _rows(site, node._saved_indices, padding if padding < site.shape[0] else None)


def index(site: Site) -> MatmulUse | None:
    """``table[indices]`` with one integer tensor on the first axis."""
    node: Any = site.node
    indices = node._saved_indices
    first = indices[0] if indices else None
    if first is None or first.dtype in (torch.bool, torch.uint8) or any(i is not None for i in indices[1:]):
        return None
    return _rows(site, first % site.shape[0], None)


def index_select(site: Site) -> MatmulUse | None:
    """``index_select(table, 0, indices)``."""
    node: Any = site.node
    return None if node._saved_dim != 0 else _rows(site, node._saved_index, None)


def _rows(site: Site, indices: Tensor, padding: int | None) -> MatmulUse | None:
    if site.layout.axis >= indices.ndim or indices.shape != site.output[: indices.ndim]:
        return None
    width = site.shape[1:].numel()

    def left(part: SampleBlock) -> Tensor:
        return grouped(indices, site.layout, part).reshape(part.groups, 1, -1)

    def right(grad: Tensor, part: SampleBlock) -> Tensor:
        rows = grouped(grad, site.layout, part).reshape(part.groups, 1, -1, width)
        return rows if padding is None else rows.masked_fill((left(part) == padding).unsqueeze(-1), 0)

    per_sample = site.layout.rows * (indices.numel() // indices.shape[site.layout.axis])
    return MatmulUse(site, left, right, (1, per_sample, site.shape[0], width), out_first=False, table=True)


RULES = {"EmbeddingBackward0": embedding, "IndexBackward0": index, "IndexSelectBackward0": index_select}
