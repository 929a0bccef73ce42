"""How many pairs of a data set are right, and how sure that is for each, without a look at the truth.

Trusted clips that a filter did not learn from show how it scores right pairs; the same clips with exchanged texts, or
sounds, show how it scores wrong ones. The scores of the data are a mixture of the two, of which only the share is
unknown. It is not a mixture model that finds its own components: where nothing is wrong, such a model divides the right
pairs in two.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import expit
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

ITERATIONS = 200
SAMPLE = 20_000  # scores of the data that are looked at
NARROWEST = 0.1  # of the variance over held-out pairs: less is left of it by chance
NOTHING = 0.01  # a weight below it counts as zero
ENOUGH = 20.0  # pairs, by their posteriors, that tell how far filters differ about a kind


class Kind(NamedTuple):
    """The scores of one kind of pair, averaged over all filters: a normal distribution."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class HeldOut:
    """Scores of pairs by filters that did not learn from them."""

    right: np.ndarray  # trusted pairs, (T,)
    groups: np.ndarray  # what each trusted pair is cut from, (T,)
    wrong: np.ndarray  # pairs of trusted clips exchanged at random, (W,)
    wrong_groups: np.ndarray  # what their clips are cut from, (W,)

    @property
    def enough(self) -> bool:
        """Whether there are any pairs to judge by."""
        return min(len(self.right), len(self.wrong)) > 1

    @property
    def auroc(self) -> float:
        """Probability that a right pair scores above a wrong one, by one filter that has learnt from neither.

        NaN without pairs of both.
        """
        if not self.enough:
            return float("nan")
        labels = np.repeat([1, 0], [len(self.right), len(self.wrong)])
        return float(roc_auc_score(labels, np.concatenate([self.right, self.wrong])))


@dataclass(frozen=True)
class Calibration:
    """What the scores of a data set mean."""

    right: Kind
    wrong: Kind
    share: float  # of the pairs that are right

    def posterior(self, scores: np.ndarray) -> np.ndarray:
        """Probability (N,) that pairs with these scores (N,) are right; it never falls as the score rises.

        The ratio of two normal densities turns round beyond one of them, where the wider one wins again. From there on
        it stays as it is.

        Examples:
            >>> import numpy as np
            >>> fitted = Calibration(Kind(2.0, 1.0), Kind(-2.0, 1.0), share=0.5)
            >>> fitted.posterior(np.array([-2.0, 0.0, 2.0])).round(2)
            array([0. , 0.5, 1. ])
        """
        (mean, deviation), (wrong_mean, wrong_deviation) = self.right, self.wrong
        if deviation != wrong_deviation:
            precision, wrong_precision = deviation**-2, wrong_deviation**-2
            turn = (wrong_mean * wrong_precision - mean * precision) / (wrong_precision - precision)
            scores = np.maximum(scores, turn) if deviation > wrong_deviation else np.minimum(scores, turn)
        odds = np.log(max(self.share, 1e-12)) - np.log(max(1 - self.share, 1e-12))
        return expit(odds + norm.logpdf(scores, *self.right) - norm.logpdf(scores, *self.wrong))

    def weights(self, scores: np.ndarray) -> np.ndarray:
        """Weights (N,) of pairs with these scores: how probably they are right; 1 where there is no pair (NaN)."""
        known = np.isfinite(scores)
        weights = np.where(known, self.posterior(np.where(known, scores, 0.0)), 1.0)
        return np.where(weights < NOTHING, 0.0, weights)

    def recall(self, threshold: float) -> float:
        """Share of the right pairs above a threshold."""
        return float(norm.sf(threshold, *self.right))


def calibrate(scores: np.ndarray, spread: np.ndarray, filters: int, held_out: HeldOut) -> Calibration:
    """Find the share of right pairs.

    A score of the data is a mean over filters, a held-out score is of one filter: so the variance of held-out scores is
    less by what filters differ about, as the data show it.

    Args:
        scores: Of the data, means over the filters (N,); NaN where a clip has none.
        spread: Variance (N,) of each score over the filters.
        filters: How many.
        held_out: Scores of held-out pairs.

    Examples:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> right, wrong = rng.normal(2, 1, 700), rng.normal(-2, 1, 300)
        >>> held_out = HeldOut(right[:200], np.arange(200), wrong[:200], np.arange(200))
        >>> fitted = calibrate(np.concatenate([right, wrong]), np.zeros(1000), filters=1, held_out=held_out)
        >>> round(fitted.share, 1)
        0.7
    """
    known = np.flatnonzero(np.isfinite(scores))
    known = known[:: -(-len(known) // SAMPLE) or 1]
    scores, spread = scores[known].astype(float), np.nan_to_num(spread[known].astype(float))
    means = np.array([held_out.right.mean(), held_out.wrong.mean()])
    variances = np.array([held_out.right.var(), held_out.wrong.var()])
    within = np.full(2, spread.mean() if len(spread) else 0.0)
    shares = np.array([0.5, 0.5])
    for _ in range(ITERATIONS):
        deviations = np.sqrt(np.maximum(variances - within * (1 - 1 / filters), NARROWEST * variances) + 1e-12)
        fitted = Calibration(Kind(means[0], deviations[0]), Kind(means[1], deviations[1]), float(shares[0]))
        if not len(scores):
            break
        right = fitted.posterior(scores)
        number = np.array([right.sum(), (1 - right).sum()])
        by_kind = np.array([right @ spread, (1 - right) @ spread]) / np.maximum(number, 1e-9)
        within = np.where(number >= ENOUGH, by_kind, spread.mean())
        shares = number / number.sum()
    return fitted


def resampled(
    scores: np.ndarray, spread: np.ndarray, filters: int, held_out: HeldOut, draws: int, seed: int = 0
) -> list[Calibration]:
    """Calibrate again with trusted recordings that are drawn anew, for intervals."""
    rng, names = np.random.default_rng(seed), np.unique(held_out.groups)
    rows = {name: np.flatnonzero(held_out.groups == name) for name in names}
    wrong_rows = {name: np.flatnonzero(held_out.wrong_groups == name) for name in names}
    results = []
    for _ in range(draws):
        drawn = rng.choice(names, len(names))
        right = held_out.right[np.concatenate([rows[name] for name in drawn])]
        wrong = held_out.wrong[np.concatenate([wrong_rows[name] for name in drawn])]
        if len(right) > 1 and len(wrong) > 1:
            results.append(calibrate(scores, spread, filters, HeldOut(right, right, wrong, wrong)))
    return results
