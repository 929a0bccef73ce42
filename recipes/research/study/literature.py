"""Rules of the literature: a mixture that divides clips into clean and noisy ones, and RINCE, a robust loss."""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.mixture import GaussianMixture
from torch import Tensor

import harmony
from recipes.model.objective import Objective, same_captions

Q, DENSITY = 0.5, 0.025  # q and lambda of RINCE, the paper's values for noisy pairs


class MixtureState(NamedTuple):
    """The number of updates, the latest loss terms (N, K) of every clip, and their weights (N, K)."""

    step: int
    terms: Tensor
    weights: Tensor


def mixture(clips: int, every: int, warmup: int) -> harmony.Transform:
    """Weigh each pair by the posterior of the component with the smaller mean; each loss has its own mixture.

    All weights are one during the warm-up; then it is fitted ``every`` so many steps. Ids of clips are 0 to N - 1.

    References:
        Li et al., DivideMix, 2020 (arXiv:2002.07394), section 3.1; Huang et al., Learning with Noisy Correspondence,
        2021 (NCR), section 3.2. There the posterior also softens the label of a pair; here it is its weight.
    """

    def init() -> MixtureState:
        return MixtureState(0, torch.full((clips, 2), torch.nan), torch.ones(clips, 2))

    def update(gram: Tensor, state: MixtureState, *, terms: Tensor, ids: Tensor, **_: Any) -> tuple[Tensor, Any]:
        step, weights = state.step, state.weights
        if step >= warmup and (step - warmup) % every == 0:
            weights = torch.stack([_posterior(losses) for losses in state.terms.unbind(1)], 1)
        latest = state.terms.index_copy(0, ids, terms.float())
        return weights[ids].to(gram.dtype), MixtureState(step + 1, latest, weights)

    return harmony.Transform(init, update)


def _posterior(losses: Tensor) -> Tensor:
    """Posterior (N,) of the component with the smaller mean; 1 for clips without a loss (NaN)."""
    known = losses.isfinite()
    x = losses[known].double().numpy()[:, None]
    x = (x - x.min()) / max(np.ptp(x), 1e-12)
    fitted = GaussianMixture(2, reg_covar=5e-4, random_state=0).fit(x)
    posterior = torch.ones(len(losses))
    posterior[known] = torch.from_numpy(fitted.predict_proba(x)[:, fitted.means_.argmin()]).float()
    return posterior


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
