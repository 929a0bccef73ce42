"""Refuses an evaluation on clips that the checkpoint was trained on."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from datasets import Dataset

from recipes.data import identity
from recipes.data.identity import Seen
from recipes.errors import DataError
from recipes.restore import load_config, own_data

SHOWN = 5  # clips that a refusal names

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Leakage:
    """What is known of clips that were trained on."""

    checked: bool  # whether the checkpoint says what it was trained on; those of earlier versions do not
    total: int  # number of clips to evaluate on
    clips: dict[str, str] = field(default_factory=dict)  # how each that was trained on was recognised, by its id

    @property
    def summary(self) -> str:
        """For people, as a part of a sentence."""
        if self.clips:
            return f"LEAKY: {len(self.clips)} of {self.total} clips are of videos that were trained on"
        if self.checked:
            return "no clip is of a video that was trained on"
        return "the checkpoint does not say what it was trained on"

    @property
    def mark(self) -> str:
        """What follows the name of a model whose figures are not to be trusted; else nothing."""
        return f" (**leaky**: trained on {len(self.clips)} of {self.total} clips)" if self.clips else ""


def check(checkpoint: Path, test: Dataset, origins: Mapping[str, str] | None = None, allow: bool = False) -> Leakage:
    """Look for clips to test on whose video a checkpoint was trained on, wherever in it; see `recognised`.

    Raises:
        DataError: Clips were trained on, and `allow` is not set.
        ValueError: The checkpoint's list is damaged.
    """
    path = checkpoint / identity.FILE
    if not path.is_file():
        log.warning(
            "%s does not say what it was trained on: whether it has seen these clips cannot be checked", checkpoint
        )
        return Leakage(checked=False, total=len(test))
    leaks = Leakage(True, len(test), recognised(test, identity.load(path), origins, lambda: _trained_on(checkpoint)))
    if leaks.clips and not allow:
        shown = "\n".join(f"  {name}: {reason}" for name, reason in list(leaks.clips.items())[:SHOWN])
        more = f"\n  and {len(leaks.clips) - SHOWN} more" if len(leaks.clips) > SHOWN else ""
        raise DataError(
            f"{len(leaks.clips)} of {len(test)} clips to evaluate on are of videos that {checkpoint} was trained on:\n"
            f"{shown}{more}\nTake them out of the data, or train without them. allow_leakage=true evaluates "
            "nevertheless, and marks the result."
        )
    return leaks


def recognised(
    test: Dataset,
    trained: Seen,
    origins: Mapping[str, str] | None = None,
    index: Callable[[], Dataset | None] = lambda: None,
) -> dict[str, str]:
    """How those clips that are of a video that was trained on are recognised, by their id.

    Args:
        test: The clips to evaluate on.
        trained: What was trained on.
        origins: The video that a clip was cut from, by its id, where that is known.
        index: Gives the index that was trained on, or None. It is called where files begin and end alike, to compare
            them.
    """
    index, digest, content_of = cache(index), cache(identity.digest_of), cache(identity.content_of)

    def same(video: str, content: int) -> bool:
        """Whether a file has all the bytes of one that was trained on; also where that cannot be known."""
        first, last = (int(np.searchsorted(trained.contents, np.uint64(content), side)) for side in ("left", "right"))
        if first == last:
            return False
        if not len(trained.rows) or (train := index()) is None:
            return True
        rows = trained.rows[first:last].tolist()
        if rows[-1] >= len(train):
            return True
        own, others = digest(video), (train[row]["video"] for row in rows)
        return own is None or any(digest(other) in (own, None) or content_of(other) != content for other in others)

    leaks, names = {}, set(trained.names.tolist())
    for name, video, known in zip(test["id"], test["video"], identity.identities(test, origins), strict=True):
        if known.content is not None and same(video, known.content):
            leaks[name] = "a file with the same bytes"
        elif known.names & names:
            leaks[name] = "a video of the same YouTube id or URL"
    return leaks


def _trained_on(checkpoint: Path) -> Dataset | None:
    """The index that a checkpoint was trained on; None where it cannot be read any more."""
    try:
        return own_data(load_config(checkpoint, device="cpu")).train
    except (ValueError, OSError) as error:
        log.warning("what %s was trained on cannot be read, and files not be compared with it: %s", checkpoint, error)
        return None
