"""Refuses an evaluation on clips that the checkpoint was trained on."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import Dataset

from recipes.data import identity
from recipes.data.identity import Identity, Seen

SHOWN = 5  # clips that a refusal names

log = logging.getLogger(__name__)


class LeakageError(ValueError):
    """Clips to evaluate on were trained on."""


@dataclass(frozen=True)
class Leakage:
    """What is known of clips that were trained on.

    Attributes:
        checked: Whether the checkpoint says what it was trained on; those of earlier versions do not.
        total: How many clips were looked at.
        clips: How each clip that was trained on was recognised, by its id.
    """

    checked: bool
    total: int
    clips: dict[str, str] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """For people, as a part of a sentence."""
        if self.clips:
            return f"LEAKY: {len(self.clips)} of {self.total} clips are of videos that were trained on"
        known = "no clip is of a video that was trained on"
        return known if self.checked else "the checkpoint does not say what it was trained on"

    @property
    def mark(self) -> str:
        """What to put behind the name of a model whose figures are not to be trusted; else nothing."""
        return f" (**leaky**: trained on {len(self.clips)} of {self.total} clips)" if self.clips else ""


def check(checkpoint: Path, test: Dataset, origins: Mapping[str, str] | None = None, allow: bool = False) -> Leakage:
    """Look for clips to test on whose video was trained on, wherever in it.

    Args:
        checkpoint: A checkpoint's folder; what it was trained on is in there, unless it is an old one.
        test: The clips to evaluate on.
        origins: The video that a clip was cut from, by its id, where that is known.
        allow: Evaluate nevertheless.

    Returns:
        What was found.

    Raises:
        LeakageError: Clips were trained on, and that is not allowed.
        ValueError: The checkpoint's list is damaged.
    """
    path = checkpoint / identity.FILE
    if not path.is_file():
        log.warning(
            "%s does not say what it was trained on: whether it has seen these clips cannot be checked", checkpoint
        )
        return Leakage(checked=False, total=len(test))
    leaks = Leakage(True, len(test), recognised(test, identity.load(path), origins))
    if leaks.clips and not allow:
        raise LeakageError(refusal(checkpoint, leaks))
    return leaks


def recognised(test: Dataset, trained: Seen, origins: Mapping[str, str] | None = None) -> dict[str, str]:
    """How those clips that are of a video that was trained on are known, by their id."""
    reasons = (_reason(video, trained) for video in identity.identities(test, origins))
    return {name: reason for name, reason in zip(test["id"], reasons, strict=True) if reason}


def refusal(checkpoint: Path, leaks: Leakage) -> str:
    """Which clips were trained on, and what to do."""
    shown = "\n".join(f"  {name}: {reason}" for name, reason in list(leaks.clips.items())[:SHOWN])
    more = f"\n  and {len(leaks.clips) - SHOWN} more" if len(leaks.clips) > SHOWN else ""
    return (
        f"{len(leaks.clips)} of {leaks.total} clips to evaluate on are of videos that {checkpoint} was trained on:\n"
        f"{shown}{more}\nTake them out of the data, or train without them. --allow-leakage evaluates nevertheless, and "
        "marks the result."
    )


def _reason(video: Identity, trained: Seen) -> str:
    """How a video is known from training; empty where it is not."""
    if video.content is not None and _among(video.content, trained.contents):
        return "a file with the same bytes"
    if any(_among(name, trained.names) for name in video.names):
        return "a video of the same YouTube id or URL"
    return ""


def _among(key: int, keys: np.ndarray) -> bool:
    place = int(np.searchsorted(keys, np.uint64(key)))
    return place < len(keys) and int(keys[place]) == key
