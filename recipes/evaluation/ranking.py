"""Retrieval: ranks, recall and its uncertainty."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.evaluation import bootstrap

RECALLS = (1, 5, 10)
TIE = 1e-6  # similarities that differ by less are equal
BLOCK = 1024  # queries at a time: memory grows with the number of items


def ranks(queries: Tensor, items: Tensor, tie: float = TIE) -> Tensor:
    """Rank (N,) of each query's own item by cosine similarity, 1-based; ties count against us.

    Copies of an item are tied, although float32 rounds their embeddings differently. So all similarities that differ
    by no more than `tie` count as equal. An embedding that is not finite ranks last.

    Args:
        queries: Embeddings (N, D).
        items: Embeddings (N, D); row n belongs to query n.
        tie: Difference of two cosines that count as equal.
    """
    queries, items = (F.normalize(x.double(), dim=-1) for x in (queries, items))
    blocks = []
    for first in range(0, len(queries), BLOCK):
        similarity = queries[first : first + BLOCK] @ items.T
        own = similarity.diagonal(first)[:, None]
        blocks.append((~(similarity < own - tie)).sum(1))
    return torch.cat(blocks)


def evaluate(
    queries: Tensor, items: Tensor, groups: np.ndarray, resamples: int = bootstrap.RESAMPLES
) -> dict[str, Any]:
    """Retrieve items by queries, see `ranks`; the bootstrap draws whole `groups` (N,), the videos of the pairs.

    Returns:
        Plain values: `pairs` (N), `median_rank` and `mean_rank` (1-based) and, for K of 1, 5 and 10, the share `R@K` of
        queries whose own item is among the first K, its 95% interval `R@K_interval` (low, high), and `R@K_chance`, the
        share in a random order.
    """
    rank = ranks(queries, items).numpy()
    hits = rank[:, None] <= np.array(RECALLS)
    sums = bootstrap.sums(np.column_stack([hits, np.ones(len(rank))]), groups, resamples=resamples)
    intervals = [
        bootstrap.share_interval(drawn / sums[:, -1], int(column.sum()), len(rank))
        for drawn, column in zip(sums.T[:-1], hits.T, strict=True)
    ]
    return {
        "pairs": len(rank),
        "median_rank": float(np.median(rank)),
        "mean_rank": float(rank.mean()),
        **{f"R@{k}": float(column.mean()) for k, column in zip(RECALLS, hits.T, strict=True)},
        **{f"R@{k}_interval": list(interval) for k, interval in zip(RECALLS, intervals, strict=True)},
        **{f"R@{k}_chance": min(k / len(rank), 1.0) for k in RECALLS},
    }


def best(query: Tensor, items: Tensor, count: int) -> list[int]:
    """Positions of the `count` items (N, D) most similar to a query (D,)."""
    similarity = F.normalize(items.double(), dim=-1) @ F.normalize(query.double(), dim=-1)
    return torch.topk(similarity, min(count, len(items))).indices.tolist()
