"""A mixture of two Gaussians on the losses of all clips: the literature's division into clean and noisy pairs."""

from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

import harmony


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
