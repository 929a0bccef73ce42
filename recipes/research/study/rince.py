"""RINCE, a contrastive loss that bounds the effect of a wrong pair. It comes from the literature."""

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.model.objective import Objective, same_captions

Q, DENSITY = 0.5, 0.025  # q and lambda, the paper's values for noisy pairs


def rince(queries: Tensor, keys: Tensor, temperature: float, positives: Tensor) -> Tensor:
    """Robust InfoNCE (B,) of embeddings (B, D), averaged over both directions.

    ``-exp(q s) / q + (lambda (exp(s) + sum of exp over the negatives)) ** q / q``; ``positives`` (B, B) masks the keys
    that are no negatives of a query, and its diagonal is True.

    Examples:
        >>> x = torch.eye(2)
        >>> rince(x, x, 1.0, torch.eye(2, dtype=torch.bool))
        tensor([-2.6879, -2.6879])

    References:
        Chuang et al., Robust Contrastive Learning against Noisy Views, 2022 (arXiv:2201.04309), equation 5.
    """
    logits = F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).T / temperature
    own = logits.diagonal()

    def one_way(logits: Tensor, positives: Tensor) -> Tensor:
        negatives = logits.masked_fill(positives, -torch.inf)
        total = torch.cat([own[:, None], negatives], 1).logsumexp(1)
        return (-(Q * own).exp() + (Q * total).exp() * DENSITY**Q) / Q

    return (one_way(logits, positives) + one_way(logits.T, positives.T)) / 2


class RobustObjective(Objective):
    """The heads of the recipe, with RINCE in place of both losses."""

    def forward(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """Terms (B,) of video-audio and video-text; every clip has one text."""
        spaces = self.project(embeddings)
        (video_va, audio), (video_vt, text) = spaces["va"], spaces["vt"]
        same_clip = embeddings["index"][:, None] == embeddings["index"]
        same_text = same_captions(embeddings["text_key"])[..., 0]
        temperature = self.config.temperature
        return {
            "va": rince(video_va, audio, temperature, same_clip),
            "vt": rince(video_vt, text[:, 0], temperature, same_clip | same_text),
        }
