"""Figures of audio tagging: average precision, area under the ROC curve, d-prime, each a mean over classes."""

from typing import Any

import numpy as np
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score


def tagging(scores: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Judge the scores of clips, class by class.

    Args:
        scores: (N, C), higher for a label that is more likely.
        truth: bool (N, C), whether a clip has a label.

    Returns:
        Plain values, means over the classes that can be judged: average precision `map`, and what scores that know
        nothing have of it, `map_chance`; area under the ROC curve `auc`; `d_prime`, as VATT's code has it, and
        `d_prime_of_auc` of the mean area, as most of the literature on AudioSet has it. Further the number of these
        `classes`, and the numbers of the classes `left_out`: all clips have the label, or none has it.

    Raises:
        ValueError: No class has both a clip with it and a clip without it.
    """
    positives = truth.sum(0)
    judged = np.flatnonzero((positives > 0) & (positives < len(truth)))
    if not len(judged):
        raise ValueError(
            f"none of the {truth.shape[1]} classes has both a clip with it and a clip without it among the "
            f"{len(truth)} test clips, so that nothing can be judged"
        )
    precision = [average_precision_score(truth[:, c], scores[:, c]) for c in judged]
    area = [roc_auc_score(truth[:, c], scores[:, c]) for c in judged]
    pairs = [positives[c] * (len(truth) - positives[c]) for c in judged]
    return {
        "map": float(np.mean(precision)),
        "auc": float(np.mean(area)),
        "d_prime": float(np.mean([d_prime(a, p) for a, p in zip(area, pairs, strict=True)])),
        "d_prime_of_auc": d_prime(float(np.mean(area)), sum(pairs)),
        "map_chance": float(positives[judged].mean() / len(truth)),
        "classes": len(judged),
        "left_out": np.setdiff1d(np.arange(truth.shape[1]), judged).tolist(),
    }


def d_prime(area: float, pairs: int) -> float:
    """Distance, in deviations, of two normal distributions whose ROC curve has an area between 0 and 1 below it.

    A perfect order would be infinitely far: it counts as if half a pair were wrong. A pair is a clip with the label and
    one without.
    """
    return float(np.sqrt(2) * norm.ppf(np.clip(area, 0.5 / pairs, 1 - 0.5 / pairs)))
