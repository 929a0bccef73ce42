"""Contrastive losses as one term per sample, coupled over the batch by in-batch negatives."""

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(
    queries: Tensor,
    keys: Tensor,
    *,
    temperature: float | Tensor = 0.07,
    symmetric: bool = False,
    valid: Tensor | None = None,
    positives: Tensor | None = None,
) -> Tensor:
    """InfoNCE: find a query's key among the keys of the batch. Both sides are L2-normalised here.

    van den Oord et al., 2018 (arXiv:1807.03748).

    Args:
        queries: Embeddings (B, D).
        keys: Embeddings (B, D); row b belongs to query b.
        temperature: Positive number, or a learnable 0-d tensor.
        symmetric: Average with the loss that finds a key's query.
        valid: Mask (B,), False where a modality is missing: the sample has the term 0, and is no negative of others.
        positives: Mask (B, B), True where key b' also fits query b (equal captions, say): their probabilities add up.

    Returns:
        Terms (B,), scaled by B / n_valid so that their mean is the mean over the valid samples.

    Examples:
        >>> x = torch.eye(3)
        >>> harmony.losses.info_nce(x, x, temperature=1.0, valid=torch.tensor([True, True, False]))
        tensor([0.4699, 0.4699, 0.0000])
    """
    if queries.ndim != 2 or keys.shape != queries.shape:
        raise ValueError(f"info_nce expects queries and keys (B, D); got {_shape(queries)} and {_shape(keys)}.")
    return mil_nce(
        queries,
        keys[:, None],
        temperature=temperature,
        symmetric=symmetric,
        valid=None if valid is None else valid[:, None],
        positives=None if positives is None else positives[:, :, None],
    )


def mil_nce(
    queries: Tensor,
    candidates: Tensor,
    *,
    temperature: float | Tensor = 0.07,
    symmetric: bool = False,
    valid: Tensor | None = None,
    positives: Tensor | None = None,
) -> Tensor:
    """MIL-NCE: find a bag of P candidates, of which some may fit, among the bags of the batch.

    The probabilities of the candidates of a bag add up: the best of them carries the loss. Both sides are L2-normalised
    here. Miech et al., 2020 (arXiv:1912.06430), equation 1.

    Args:
        queries: Embeddings (B, D): video clips, say.
        candidates: Embeddings (B, P, D): the P narrations nearest to each clip. Row b is the bag of query b.
        temperature: Positive number, or a learnable 0-d tensor.
        symmetric: Average with the loss that finds a bag's query.
        valid: Mask (B, P), False where a narration is missing. A sample without any has the term 0, and neither its
            query nor its bag is a negative.
        positives: Mask (B, B, P), True where candidate p of bag b' also fits query b.

    Returns:
        Terms (B,), scaled by B / n_valid so that their mean is the mean over the valid samples.

    Examples:
        >>> clips, narrations = torch.eye(2), torch.stack([torch.eye(2), torch.eye(2).flip(0)])
        >>> harmony.losses.mil_nce(clips, narrations, temperature=1.0)
        tensor([0.6931, 0.6931])
    """
    b, p = candidates.shape[:2] if candidates.ndim == 3 else (0, 0)
    expected = {"queries": (b, candidates.shape[-1]), "valid": (b, p), "positives": (b, b, p)}
    for name, x in {"queries": queries, "valid": valid, "positives": positives}.items():
        if candidates.ndim != 3 or (x is not None and tuple(x.shape) != expected[name]):
            raise ValueError(
                f"mil_nce expects queries (B, D), candidates (B, P, D), valid (B, P), positives (B, B, P); got "
                f"candidates {_shape(candidates)} and {name} {None if x is None else _shape(x)}."
            )
    similarity = torch.einsum("ad,bpd->abp", F.normalize(queries, dim=-1), F.normalize(candidates, dim=-1))
    logits = (similarity.float() if similarity.dtype in (torch.float16, torch.bfloat16) else similarity) / temperature

    valid = torch.ones(b, p, dtype=torch.bool, device=logits.device) if valid is None else valid
    sample = valid.any(1)
    pairs = sample[:, None, None] & valid
    diagonal = torch.eye(b, dtype=torch.bool, device=logits.device)[:, :, None]
    fits = (diagonal if positives is None else diagonal | positives) & pairs

    terms = _negative_log_share(logits, fits, pairs)
    if symmetric:
        terms = (terms + _negative_log_share(*(x.transpose(0, 1) for x in (logits, fits, pairs)))) / 2
    # masked rows hold NaN in the forward pass only: the gradient of masked_fill is exactly 0 there
    return torch.where(sample, terms, 0) * (b / sample.sum().clamp(min=1))


def _negative_log_share(logits: Tensor, fits: Tensor, pairs: Tensor) -> Tensor:
    """``-log(sum of exp over what fits / sum of exp over all pairs)`` for each row of (B, B, P)."""
    fitting = logits.masked_fill(~fits, -torch.inf).flatten(1).logsumexp(1)
    return logits.masked_fill(~pairs, -torch.inf).flatten(1).logsumexp(1) - fitting


def _shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)
