"""Figures of audio tagging: average precision, area under the ROC curve, d-prime, each a mean over classes."""

from typing import NamedTuple

import numpy as np
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score


class Tagging(NamedTuple):
    """Means over the classes that can be judged.

    Attributes:
        map: Average precision (mAP).
        auc: Area under the ROC curve.
        d_prime: Mean of the classes' d-prime, as VATT's code has it.
        d_prime_of_auc: d-prime of the mean area, as most of the literature on AudioSet has it.
        map_chance: What scores that know nothing have on average: the share of clips with the label.
        classes: How many classes are judged.
        left_out: Numbers of the classes that are not: without a positive clip, or with nothing else.
    """

    map: float
    auc: float
    d_prime: float
    d_prime_of_auc: float
    map_chance: float
    classes: int
    left_out: list[int]


def tagging(scores: np.ndarray, truth: np.ndarray) -> Tagging:
    """Judge the scores of clips, class by class.

    Args:
        scores: (N, C), higher for a label that is more likely.
        truth: bool (N, C), whether a clip has a label.

    Returns:
        The figures.

    Raises:
        ValueError: No class has both a clip with it and a clip without it.
    """
    positives = truth.sum(0)
    judged = np.flatnonzero((positives > 0) & (positives < len(truth)))
    if not len(judged):
        raise ValueError(
            f"none of the {truth.shape[1]} classes has both a clip with it and a clip without it among the "
            f"{len(truth)} test clips: there is nothing to tell apart"
        )
    precision = [average_precision_score(truth[:, c], scores[:, c]) for c in judged]
    area = [roc_auc_score(truth[:, c], scores[:, c]) for c in judged]
    pairs = [positives[c] * (len(truth) - positives[c]) for c in judged]
    return Tagging(
        map=float(np.mean(precision)),
        auc=float(np.mean(area)),
        d_prime=float(np.mean([d_prime(a, p) for a, p in zip(area, pairs, strict=True)])),
        d_prime_of_auc=d_prime(float(np.mean(area)), sum(pairs)),
        map_chance=float(positives[judged].mean() / len(truth)),
        classes=len(judged),
        left_out=np.setdiff1d(np.arange(truth.shape[1]), judged).tolist(),
    )


def d_prime(area: float, pairs: int) -> float:
    """How far apart two normal distributions are, in deviations, between which the ROC curve has this area below it.

    Args:
        area: Between 0 and 1.
        pairs: Of a clip with the label and one without, from which the area was counted. A perfect order would be
            infinitely far: it counts as if half a pair were wrong.
    """
    return float(np.sqrt(2) * norm.ppf(np.clip(area, 0.5 / pairs, 1 - 0.5 / pairs)))
