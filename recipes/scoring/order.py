"""A random order of any number of clips that is computed, not stored."""

import numpy as np

ROUNDS = 4


def shuffled(positions: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Look up places of a random permutation of ``range(number)``, in constant memory.

    A Feistel network permutes the next power of four. A number outside the range goes through it again until it is
    inside. Places and the numbers at them are int64 (n,) in [0, number).

    Examples:
        >>> import numpy as np
        >>> order = shuffled(np.arange(1000), 1000, seed=0)
        >>> bool((np.sort(order) == np.arange(1000)).all()), bool((order == np.arange(1000)).any())
        (True, False)

    References:
        Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002 (cycle walking).
    """
    half = max(1, (max(number - 1, 1).bit_length() + 1) // 2)
    keys = np.random.default_rng(seed).integers(2**63, size=ROUNDS, dtype=np.uint64)
    x = np.asarray(positions, np.uint64)
    outside = np.ones(len(x), bool)
    while outside.any():
        x[outside] = _feistel(x[outside], half, keys)
        outside = x >= number
    return x.astype(np.int64)


def _feistel(x: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    low, shift = np.uint64((1 << half) - 1), np.uint64(half)
    left, right = x >> shift, x & low
    for key in keys:
        left, right = right, left ^ (_mixed(right + key) & low)
    return (left << shift) | right


def _mixed(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
