"""A score that asks the neighbours: what is alike in one modality should be alike in the other."""

import torch
import torch.nn.functional as F
from torch import Tensor

from harmony.arguments import check_range, require_extra
from harmony.members import block_function
from harmony.score.base import has_gradients


@block_function
def neighbours(gram: Tensor, *, first: Tensor | None = None, second: Tensor | None = None, k: int = 5) -> Tensor:
    """How well a pair of modalities agrees with the pairs of its nearest neighbours within one of them.

    For a clip, take its k nearest others by video; their texts should be more like its own text than texts in general
    are. And the other way round; the score is the mean of both. It needs no space that the modalities share, and no
    loss: a wrong text that has been learnt by heart is still unlike the texts of similar videos. What the embeddings
    cannot tell apart, the score cannot either. Batches must hold several clips of a kind.

    Args:
        gram: Gram blocks (B, K, K), which say who lacks a modality.
        first: Embeddings (B, D) of one modality, L2-normalised here, from a step with
            ``extras=lambda embeddings: {"first": ..., "second": ...}``.
        second: Embeddings (B, E) of the other.
        k: Number of neighbours, at least 1; all others, where they are fewer.

    Returns:
        ``mean_{c in N_k(b)} <y_b, y_c> - mean_{c != b} <y_b, y_c>`` (B,), over both directions; in [-2, 2]. Equally
        near neighbours share the last places. An exact copy of the pair says nothing of it, and is left out. NaN for a
        sample without others, without an agreement, or of which a side is zero or not finite. That similar images have
        similar texts is the idea of Yang et al., BiCro, 2023 (arXiv:2303.12419); IN2R, 2026 (arXiv:2606.04061), makes
        targets of neighbours within a modality.

    Examples:
        >>> video = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])  # two of one kind, two of another
        >>> text = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])  # the second has a wrong text
        >>> values = harmony.score.neighbours(torch.eye(2).expand(4, 2, 2), first=video, second=text, k=1)
        >>> values.argmin()
        tensor(1)
    """
    check_range("k", k, at_least=1)
    source = 'extras=lambda embeddings: {"first": ..., "second": ...}'
    sides = [
        require_extra("neighbours", name, side, (len(gram), "D"), source)
        for name, side in (("first", first), ("second", second))
    ]
    sides = [side.to(torch.promote_types(side.dtype, torch.float32)) for side in sides]
    valid = has_gradients(gram)
    for side in sides:
        valid = valid & side.isfinite().all(1) & (side != 0).any(1)
    x, y = (_similarities(side, valid) for side in sides)
    copies = (x >= 1 - _rounding(x)) & (y >= 1 - _rounding(y))
    others = valid[:, None] & valid & ~copies & ~torch.eye(len(gram), dtype=torch.bool, device=gram.device)
    number = others.sum(1)
    scores = [
        (nearest(near, others, k) * alike).sum(1) - torch.where(others, alike, 0).sum(1) / number.clamp(min=1)
        for near, alike in ((x, y), (y, x))
    ]
    return torch.where(number > 0, torch.stack(scores).mean(0), torch.nan)


def nearest(similarities: Tensor, others: Tensor, k: int) -> Tensor:
    """Weights (B, B) of each row's k most similar others, which add up to 1; equals share the last places.

    Zeros in a row without others. ``others`` is a mask (B, B); where fewer than k are set, all of them count.
    """
    near = torch.where(others, similarities, -torch.inf)
    number = others.sum(1, keepdim=True).clamp(max=k)
    last = near.sort(1, descending=True).values.gather(1, (number - 1).clamp(min=0))  # the k-th
    above = others & (near > last + _rounding(near))
    level = others & ~above & (near >= last - _rounding(near))
    share = (number - above.sum(1, keepdim=True)).to(near.dtype) / level.sum(1, keepdim=True).clamp(min=1)
    return (above + level * share) / number.clamp(min=1)


def _similarities(side: Tensor, valid: Tensor) -> Tensor:
    """Cosines (B, B) within one modality; zero for samples that are not valid."""
    unit = F.normalize(torch.where(valid[:, None], side, 0), dim=1)
    return unit @ unit.mT


def _rounding(similarities: Tensor) -> float:
    """By how much two cosines may differ that are equal but for rounding."""
    return 8 * torch.finfo(similarities.dtype).eps
