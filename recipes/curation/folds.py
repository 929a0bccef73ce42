"""Who learns from what: every filter leaves out some recordings, to be judged on them."""

from collections.abc import Sequence

import numpy as np


def fold_of(groups: Sequence[str], folds: int, seed: int = 0) -> np.ndarray:
    """The fold (N,) of each clip, 0 to folds - 1: all clips of one recording are in the same.

    Clips of one recording are alike: a filter that has learnt from one of them knows the others too well.

    Args:
        groups: What each clip is cut from, N names.
        folds: How many; there must be as many recordings.
        seed: Of the draw.

    Examples:
        >>> import numpy as np
        >>> folds = fold_of(["a", "a", "b", "c"], folds=3)
        >>> bool(folds[0] == folds[1]), sorted(set(folds.tolist()))
        (True, [0, 1, 2])
    """
    names, group = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    if len(names) < folds:
        raise ValueError(f"{len(names)} recording(s) cannot be dealt to {folds} folds: label more, or take fewer folds")
    return np.argsort(np.random.default_rng(seed).permutation(len(names)))[group] % folds
