"""What an annotation says of one clip, and what a format of annotations is."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

Pair = Literal["video-text", "video-audio"]
PAIRS: tuple[Pair, ...] = get_args(Pair)


class Fact(NamedTuple):
    """Whether the two modalities of a pair belong together in one clip.

    A fact speaks of a narration by its position and text, of a sentence by its text and time, of a part of a video by
    its time, or else of the whole video.
    """

    pair: Pair
    video: str  # its id, or its path without the ending
    aligned: bool | None  # None: the annotation does not decide it
    position: int | None = None  # of the narration among those of the video
    text: str | None = None
    span: tuple[float, float] | None = None  # seconds


class Format(NamedTuple):
    """A file of annotations: recognised by its first line, read into facts.

    A reader raises a ValueError that names the file and the place where it is not as it should be.
    """

    name: str
    content: str  # what a file holds, for people
    recognises: Callable[[str], bool]
    read: Callable[[Path], Iterator[Fact]]


def object_in(line: str) -> dict[str, Any]:
    """The JSON object that a line is; an empty one for any other line."""
    try:
        parsed = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}
