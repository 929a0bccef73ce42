"""HTM-Align: sentences spoken in 80 videos of HowTo100M, and whether the picture shows what they say.

Tengda Han, Weidi Xie, Andrew Zisserman: Temporal Alignment Networks for Long-term Video (2022, arXiv:2204.02968).
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recipes.data.encoding import read_text
from recipes.scoring.truth.fact import Fact, Format

# One object of lists, on one line or on many.
BEGINS = re.compile(r'\s*\{\s*("([^"\\]|\\.)*"\s*:\s*\[|$)')


def read_htm_align(path: Path) -> Iterator[Fact]:
    """Read {id of a video: [[alignable (1 or 0), start, end, text], ...]}.

    The times of an alignable sentence are those at which it is shown, moved by hand; of others, those at which it is
    said.
    """
    try:
        videos = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON, or cut off: {error}") from error
    for video, sentences in videos.items():
        for number, sentence in enumerate(sentences if isinstance(sentences, list) else [sentences]):
            yield _fact(f"{path}, sentence {number} of {video}", video, sentence)


def _fact(where: str, video: str, sentence: Any) -> Fact:
    try:
        alignable, start, end, text = sentence
        span = float(start), float(end)
        if alignable not in (0, 1) or not isinstance(text, str) or not all(map(math.isfinite, span)):
            raise ValueError
        return Fact("video-text", video, bool(alignable), text=text, span=span)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{where}: expected [1 or 0, start, end, text]; found {sentence!r:.80}") from error


FORMAT = Format(
    "HTM-Align",
    "one JSON object, {id of a video: [[1 or 0, start, end, text], ...]}",
    lambda line: BEGINS.match(line) is not None,
    read_htm_align,
)
