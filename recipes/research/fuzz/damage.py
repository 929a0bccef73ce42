"""Random damage: to bytes, to values."""

import json
import math
from typing import Any

import numpy as np

NUMBERS = (0, -1, 1, 2**31, 2**63, 10**30, 10**400, -0.0, 1e308, math.inf, -math.inf, math.nan, 0.5)
PATHS = (
    "..",
    "../../etc/passwd",
    "/dev/zero",
    "/dev/null",
    "/proc",
    "file:///etc/passwd",
    "#1:2",
    "a.mp4#9999999999:1",
)
URLS = ("file:///etc/passwd", "https://127.0.0.1/x", "python://x")
TEXTS = ("", " ", "x", "\0", "\ud800", "\x1b[2J", "a" * 300, "a" * 5000, "é" * 99, "9" * 5000, "[" * 2000)
YAML = ("${oc.env:HOME}", "null", "nan", "1e400", "${train.steps}")
VALUES = (None, True, *NUMBERS, *PATHS, *URLS, *TEXTS, *YAML, [], [[]], [1, 2], {}, {"a": {}})


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes with one to four kinds of damage, of which each may be anywhere."""
    for _ in range(rng.integers(1, 5)):
        if not data:
            return data
        at = int(rng.integers(len(data)) if rng.random() < 0.5 else rng.integers(min(len(data), 512)))
        size = int(rng.integers(1, 1 + min(64, len(data)) ** int(rng.integers(1, 3))))
        head, piece, tail = data[:at], data[at : at + size], data[at + size :]
        ways = (
            b"",  # and no tail
            bytes(len(piece)) + tail,
            rng.bytes(len(piece)) + tail,
            tail,
            piece + piece + tail,
            bytes([data[at] ^ (1 << int(rng.integers(8)))]) + data[at + 1 :],
            bytes([255]) * len(piece) + tail,
        )
        data = head + ways[rng.integers(len(ways))]
    return data


def value(rng: np.random.Generator) -> Any:
    """A value that somebody may write somewhere."""
    return VALUES[rng.integers(len(VALUES))]


def altered(tree: Any, rng: np.random.Generator) -> Any:
    """A tree of JSON with another value, or a key less, or one more, somewhere."""
    if isinstance(tree, dict) and tree and rng.random() < 0.8:
        key = list(tree)[rng.integers(len(tree))]
        chance = rng.random()
        if chance < 1 / 8:
            return {k: v for k, v in tree.items() if k != key}
        if chance < 1 / 4:
            return tree | {str(value(rng)): value(rng)}
        return tree | {key: altered(tree[key], rng)}
    if isinstance(tree, list) and tree and rng.random() < 0.8:
        at = int(rng.integers(len(tree)))
        return [*tree[:at], altered(tree[at], rng), *tree[at + 1 :]]
    return value(rng)


def written(tree: Any) -> str:
    return json.dumps(tree, ensure_ascii=True)
