"""What any number or text of a configuration must be, whatever it is for: finite, not empty, of a size that can be had.

The bounds are generous: they refuse what cannot be meant, before it takes the memory or the time.
"""

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from recipes.data.clips import ClipFormat

CLIP_BYTES = 2**30
LETTERS = 100  # of a name that becomes a folder's
MOST = {  # by the last part of the key
    "frames": 4096, "size": 4096, "fps": 1000, "sample_rate": 384_000, "audio_seconds": 3600, "words": 4096,
    "narrations": 256, "audio_patch": 2**20, "word_width": 2**14, "audio_space": 2**16, "text_space": 2**16,
    "batch_size": 2**20, "group_size": 2**20, "chunk_size": 2**20, "steps": 10**9, "warmup": 10**9, "keep": 10**6,
    "log_every": 10**9, "checkpoint_every": 10**9, "probe_every": 10**9, "every": 10**9, "max_bad_steps": 10**9,
    "limit": 10**9, "workers": 1024, "timeout": 7 * 86_400, "prefetch_gib": 2**14, "vocabulary": 10**8,
    "videos": 10**7, "test_videos": 10**7, "clips": 10**9, "test_clips": 10**9, "windows": 1000, "crops": 1000,
    "seed": 2**32 - 1, "seeds": 2**32 - 1, "temperature": 10**6, "weight": 10**9,
    "flip": 1, "colour": 1, "brightness": 1, "hue": 1, "noise": 100, "contrast": 100, "saturation": 100,
    "weight_decay": 1000, "eps": 1, "crop_aspect": 100, "crop_area": 1, "video_patch": 4096,
}  # fmt: skip
LEAST = dict.fromkeys(
    ("seed", "seeds", "flip", "colour", "brightness", "hue", "noise", "contrast", "saturation", "weight"), 0
)


def problems(config: Any) -> list[str]:
    """What is wrong with single values of a configuration.

    Args:
        config: An instance of any of the dataclasses of a configuration.

    Returns:
        A sentence for each value that cannot be meant, with its key.
    """
    sentences, clips = [], []
    for key, value in _nodes(config):
        name = key.rpartition(".")[2]
        if isinstance(value, ClipFormat):
            clips.append((key, value))
        elif isinstance(value, str):
            if not value:
                sentences.append(f"{key}= is empty: give it a value, or leave it out")
            elif "\0" in value:
                sentences.append(f"{key}={value!r} holds a character that no path can have")
            elif name == "name" and len(value) > LETTERS:
                sentences.append(f"{key} has {len(value)} letters, more than {LETTERS}")
        elif isinstance(value, float) and not math.isfinite(value):
            sentences.append(f"{key}={value} must be a finite number")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            if name in MOST and value > MOST[name]:
                sentences.append(f"{key}={value!r:.40} must be at most {MOST[name]}")
            if name in LEAST and value < LEAST[name]:
                sentences.append(f"{key}={value!r:.40} must be at least {LEAST[name]}")
    return sentences or [sentence for key, clip in clips for sentence in _too_large(key, clip)]


def _nodes(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every section and value with its key; those of a list share one."""
    yield key, node
    if is_dataclass(node):
        for field in fields(node):
            yield from _nodes(getattr(node, field.name), f"{key}.{field.name}" if key else field.name)
    elif isinstance(node, dict):
        for name, value in node.items():
            yield from _nodes(value, f"{key}.{name}")
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _nodes(value, key)


def _too_large(key: str, clip: ClipFormat) -> list[str]:
    size = 3 * clip.frames * clip.size**2 + 4 * clip.samples + 8 * clip.narrations * clip.words
    if clip.inputs != "raw" or size <= CLIP_BYTES:
        return []
    return [f"{key}: one clip of {clip.frames} pictures of {clip.size}x{clip.size} would take {size / 2**30:.1f} GiB"]
