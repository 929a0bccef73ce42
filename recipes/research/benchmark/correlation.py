"""How well one reading of the agreement of samples stands for another."""

import warnings

from scipy.stats import spearmanr
from torch import Tensor


def spearman(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of two vectors, equal values sharing their mean rank; NaN if one is constant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's, of constants
        return float(spearmanr(a, b).statistic)


def equal_signs(a: Tensor, b: Tensor) -> float:
    """Share of the places where both vectors are below zero, or both are not."""
    return float(((a < 0) == (b < 0)).float().mean())
