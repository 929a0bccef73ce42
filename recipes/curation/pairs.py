"""The score of a pair: how much better two embeddings fit each other than they fit others."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def pair_scores(queries: Tensor, keys: Tensor, bank_queries: Tensor, bank_keys: Tensor, temperature: float) -> Tensor:
    """Score pairs against a bank of others, the same for all: scores do not depend on batch mates.

    It is the pointwise mutual information that a contrastive loss estimates, the mean over both directions: the
    similarity over the temperature, less the logarithm of the mean of its exponential over the bank. A text that fits
    everything has a low score, where its cosine is high.

    Args:
        queries: Embeddings (B, D) of one side; they are normalised here.
        keys: Of the other side, (B, D).
        bank_queries: Embeddings (N, D) of others, of the side of the queries.
        bank_keys: Embeddings (N, D) of the other side.
        temperature: Of the loss that trained them.

    Returns:
        Scores (B,), in nats; 0 for a pair that fits as well as any.

    Examples:
        >>> import torch
        >>> x = torch.eye(3)
        >>> pair_scores(x[:2], x[[0, 2]], x, x, temperature=1.0)
        tensor([ 0.5472, -0.4528])

    References:
        van den Oord et al., Representation Learning with Contrastive Predictive Coding, 2018 (arXiv:1807.03748),
        section 2.3: the optimal similarity is the logarithm of a density ratio.
    """
    queries, keys, bank_queries, bank_keys = (F.normalize(x, dim=-1) for x in (queries, keys, bank_queries, bank_keys))
    by_key = (queries @ bank_keys.T / temperature).logsumexp(1) - math.log(len(bank_keys))
    by_query = (keys @ bank_queries.T / temperature).logsumexp(1) - math.log(len(bank_queries))
    return (queries * keys).sum(1) / temperature - (by_key + by_query) / 2
