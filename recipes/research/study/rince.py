"""RINCE, a contrastive loss that bounds what a wrong pair can do: of the literature, not of the library."""

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.model.objective import Objective, same_captions

Q, DENSITY = 0.5, 0.025  # q and lambda, as the paper sets them for noisy pairs


def rince(queries: Tensor, keys: Tensor, temperature: float, fits: Tensor) -> Tensor:
    """Robust InfoNCE, averaged over both directions.

    Args:
        queries: Embeddings (B, D).
        keys: Embeddings (B, D); row b belongs to query b.
        temperature: Positive.
        fits: Mask (B, B), True where a key is no negative of a query; so on the diagonal.

    Returns:
        Terms (B,): ``-exp(q s) / q + (lambda (exp(s) + sum of exp over the negatives)) ** q / q``.

    Examples:
        >>> x = torch.eye(2)
        >>> rince(x, x, 1.0, torch.eye(2, dtype=torch.bool))
        tensor([-2.6879, -2.6879])

    References:
        Chuang et al., Robust Contrastive Learning against Noisy Views, 2022 (arXiv:2201.04309), equation 5.
    """
    logits = F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).T / temperature
    own = logits.diagonal()

    def one_way(logits: Tensor, fits: Tensor) -> Tensor:
        rivals = logits.masked_fill(fits, -torch.inf)
        total = torch.cat([own[:, None], rivals], 1).logsumexp(1)
        return (-(Q * own).exp() + (Q * total).exp() * DENSITY**Q) / Q

    return (one_way(logits, fits) + one_way(logits.T, fits.T)) / 2


class RobustObjective(Objective):
    """The heads of the recipe, with RINCE in the place of both losses."""

    def forward(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """Terms (B,) of video-audio and video-text; every clip has one text."""
        spaces = self.project(embeddings)
        same_clip = embeddings["index"][:, None] == embeddings["index"]
        fits = {"va": same_clip, "vt": same_clip | same_captions(embeddings["text_key"])[..., 0]}
        return {
            name: rince(video, other if name == "va" else other[:, 0], self.config.temperature, fits[name])
            for name, (video, other) in spaces.items()
        }
