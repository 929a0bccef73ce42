"""Retrieval: ranks, recall and its uncertainty."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

RECALLS = (1, 5, 10)


@dataclass(frozen=True)
class Retrieval:
    """Result of one retrieval task over N pairs.

    Attributes:
        recall: {K: share of queries whose own item is among the first K}.
        interval: {K: (low, high)}, 95% bootstrap intervals.
        chance: {K: K / N}.
        median_rank: 1-based.
        pairs: N.
    """

    recall: dict[int, float]
    interval: dict[int, tuple[float, float]]
    chance: dict[int, float]
    median_rank: float
    pairs: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "pairs": self.pairs,
            "median_rank": self.median_rank,
            **{f"R@{k}": self.recall[k] for k in self.recall},
            **{f"R@{k}_interval": list(self.interval[k]) for k in self.recall},
            **{f"R@{k}_chance": self.chance[k] for k in self.recall},
        }


def ranks(queries: Tensor, items: Tensor) -> Tensor:
    """Rank of each query's own item by cosine similarity, 1-based; ties count against us.

    Args:
        queries: Embeddings (N, D).
        items: Embeddings (N, D); row n belongs to query n.

    Returns:
        Ranks (N,). An embedding that is not finite ranks last.
    """
    similarity = F.normalize(queries.double(), dim=-1) @ F.normalize(items.double(), dim=-1).T
    own = similarity.diagonal()[:, None]
    return (~(similarity < own)).sum(1)


def evaluate(queries: Tensor, items: Tensor, groups: list[str], seed: int = 0, resamples: int = 2000) -> Retrieval:
    """Retrieve items by queries.

    Args:
        queries: Embeddings (N, D).
        items: Embeddings (N, D); row n belongs to query n.
        groups: Which video each pair is from, (N,). Pairs of one video are alike: whole videos are resampled.
        seed: Of the bootstrap.
        resamples: Bootstrap samples.

    Returns:
        Recall at 1, 5 and 10 with intervals, and the median rank.
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
    return Retrieval(recall, interval, {k: min(k / n, 1.0) for k in RECALLS}, float(np.median(found)), n)


def best(query: Tensor, items: Tensor, count: int) -> list[int]:
    """Positions of the ``count`` items (N, D) most similar to a query (D,)."""
    similarity = F.normalize(items.double(), dim=-1) @ F.normalize(query.double(), dim=-1)
    return torch.topk(similarity, min(count, len(items))).indices.tolist()
