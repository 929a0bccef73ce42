"""Which fact speaks of which row of a table of scores."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from recipes.scoring.truth.fact import Fact

Row = Mapping[str, Any]  # of a table of scores


def match(rows: Sequence[Row], facts: Sequence[Fact]) -> list[int | None]:
    """Find the fact about each row: its place among the facts, or None.

    A video is called by the row's id, by its path without the ending, or by the last parts of either. Where its facts
    have positions, that of the narration counts, and the texts must be equal. Where they have texts, the equal one
    counts, whatever its blanks and capitals; of several, the nearest in time. Where they have spans, the one counts
    that holds the middle of the row's window, or else the fact without a span.

    Raises:
        ValueError: At its position a narration has another text: the truth is of other clips.

    Examples:
        >>> from recipes.scoring.truth.fact import Fact
        >>> row = {"id": "test/a", "video": "/v/test/a.mp4", "narration": 0, "caption": "Chop it", "start": 1, "end": 3}
        >>> match([row], [Fact("video-text", "b", True), Fact("video-text", "a", True, text="chop  it", span=(0, 2))])
        [1]
    """
    by_video: dict[str, list[int]] = defaultdict(list)
    for place, fact in enumerate(facts):
        by_video[fact.video].append(place)
    return [_about(row, facts, next((by_video[name] for name in _names(row) if name in by_video), [])) for row in rows]


def stem(path: str) -> str:
    """A path without its ending."""
    return re.sub(r"\.[^./]*$", "", path)


def _names(row: Row) -> Iterator[str]:
    for whole in (row["id"] or "", stem(row["video"] or "")):
        parts = whole.split("/")
        yield from ("/".join(parts[first:]) for first in range(len(parts)))


def _about(row: Row, facts: Sequence[Fact], places: list[int]) -> int | None:
    if any(facts[place].position is not None for place in places):
        return _by_position(row, facts, places)
    middle = _middle(row["start"], row["end"])
    if any(facts[place].text is not None for place in places):
        equal = [place for place in places if _plain(facts[place].text) == _plain(row["caption"])]
        return min(equal, key=lambda place: abs(_middle(*facts[place].span or (0, 0)) - middle), default=None)
    whole = next((place for place in places if facts[place].span is None), None)
    spans = ((place, facts[place].span) for place in places)
    return next((place for place, span in spans if span and span[0] <= middle < span[1]), whole)


def _by_position(row: Row, facts: Sequence[Fact], places: list[int]) -> int | None:
    position = row["narration"]
    if position is None or position < 0:
        return None
    place = next((place for place in places if facts[place].position == position), None)
    text = None if place is None else facts[place].text
    if text != row["caption"]:
        raise ValueError(
            f"expected narration {position} of {row['id']} to be {row['caption']!r}, as in the table; found {text!r}"
        )
    return place


def _plain(text: str | None) -> str:
    return " ".join((text or "").split()).casefold()


def _middle(start: float | None, end: float | None) -> float:
    return ((start or 0.0) + (end or 0.0)) / 2
