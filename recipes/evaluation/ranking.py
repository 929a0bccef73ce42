"""Retrieval: ranks, recall and its uncertainty."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

RECALLS = (1, 5, 10)
TIE = 1e-6  # similarities that differ by less are equal
BLOCK = 1024  # queries at a time: memory grows with the number of items


@dataclass(frozen=True)
class Retrieval:
    """Result of one retrieval task over N pairs.

    Attributes:
        recall: {K: share of queries whose own item is among the first K}.
        interval: {K: (low, high)}, 95% bootstrap intervals.
        chance: {K: K / N}.
        median_rank, mean_rank: 1-based.
        pairs: N.
    """

    recall: dict[int, float]
    interval: dict[int, tuple[float, float]]
    chance: dict[int, float]
    median_rank: float
    mean_rank: float
    pairs: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "pairs": self.pairs,
            "median_rank": self.median_rank,
            "mean_rank": self.mean_rank,
            **{f"R@{k}": self.recall[k] for k in self.recall},
            **{f"R@{k}_interval": list(self.interval[k]) for k in self.recall},
            **{f"R@{k}_chance": self.chance[k] for k in self.recall},
        }


def ranks(queries: Tensor, items: Tensor, tie: float = TIE) -> Tensor:
    """Rank of each query's own item by cosine similarity, 1-based; ties count against us.

    Copies of an item are tied, though their embeddings may differ by what float32 rounds off: so are all similarities
    that do not differ by more than `tie`.

    Args:
        queries: Embeddings (N, D).
        items: Embeddings (N, D); row n belongs to query n.
        tie: Difference of two cosines that are taken for equal.

    Returns:
        Ranks (N,). An embedding that is not finite ranks last.
    """
    queries, items = (F.normalize(x.double(), dim=-1) for x in (queries, items))
    found = []
    for first in range(0, len(queries), BLOCK):
        similarity = queries[first : first + BLOCK] @ items.T
        own = similarity.diagonal(first)[:, None]
        found.append((~(similarity < own - tie)).sum(1))
    return torch.cat(found)


def evaluate(queries: Tensor, items: Tensor, groups: list[str], seed: int = 0, resamples: int = 2000) -> Retrieval:
    """Retrieve items by queries.

    Args:
        queries: Embeddings (N, D).
        items: Embeddings (N, D); row n belongs to query n.
        groups: Which video each pair is from, (N,). Pairs of one video are alike: whole videos are resampled.
        seed: Of the bootstrap.
        resamples: Bootstrap samples.

    Returns:
        Recall at 1, 5 and 10 with intervals, and the median and mean rank.
    """
    found = ranks(queries, items).numpy()
    names, group = np.unique(np.array(groups), return_inverse=True)
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    sizes = np.bincount(group)
    recall, interval = {}, {}
    for k in RECALLS:
        hits = found <= k
        recall[k] = float(hits.mean())
        resampled = draws @ np.bincount(group, weights=hits) / (draws @ sizes)
        low, high = np.quantile(resampled, [0.025, 0.975])
        interval[k] = (float(low), float(high))
    n = len(found)
    chance = {k: min(k / n, 1.0) for k in RECALLS}
    return Retrieval(recall, interval, chance, float(np.median(found)), float(found.mean()), n)


def best(query: Tensor, items: Tensor, count: int) -> list[int]:
    """Positions of the ``count`` items (N, D) most similar to a query (D,)."""
    similarity = F.normalize(items.double(), dim=-1) @ F.normalize(query.double(), dim=-1)
    return torch.topk(similarity, min(count, len(items))).indices.tolist()
