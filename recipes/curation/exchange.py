"""Wrong pairs that are made on purpose: held-out trusted clips with the texts, or sounds, of each other."""

import numpy as np

DRAWS = 8  # partners of each clip that are drawn at random
NEAREST = 0.1  # share of the other clips that count as similar

Pairs = tuple[np.ndarray, np.ndarray]  # positions (W,) of the clips, and of those that they are paired with


def at_random(groups: np.ndarray, texts: np.ndarray, rng: np.random.Generator) -> Pairs:
    """Pair each clip with some of other recordings, whose texts are other words.

    Args:
        groups: What each clip is cut from, (H,).
        texts: Equal where texts are equal, (H,).
        rng: Of the draw.
    """
    clips: list[int] = []
    partners: list[int] = []
    for clip in range(len(groups)):
        others = np.flatnonzero((groups != groups[clip]) & (texts != texts[clip]))
        drawn = rng.permutation(others)[:DRAWS]
        clips += [clip] * len(drawn)
        partners += drawn.tolist()
    return np.array(clips, int), np.array(partners, int)


def among_similar(similarity: np.ndarray, groups: np.ndarray, texts: np.ndarray, rng: np.random.Generator) -> Pairs:
    """Pair each clip with one of other words, out of the tenth of them that is most similar to its own text, or sound.

    ``similarity`` (H, H) is of their own texts, or sounds.
    """
    other = (groups[:, None] != groups) & (texts[:, None] != texts)
    clips = np.flatnonzero(other.any(1))
    ranked = np.where(other, similarity, -np.inf).argsort(1)[:, ::-1]
    nearest = np.maximum(np.round(NEAREST * other.sum(1)).astype(int), 1)
    return clips, np.array([ranked[clip, rng.integers(nearest[clip])] for clip in clips], int)


def in_recording(groups: np.ndarray, texts: np.ndarray, rng: np.random.Generator) -> Pairs:
    """Pair each clip with one of other words in its own recording, where there is one."""
    other = (groups[:, None] == groups) & (texts[:, None] != texts)
    clips = np.flatnonzero(other.any(1))
    return clips, np.array([rng.choice(np.flatnonzero(other[clip])) for clip in clips], int)
