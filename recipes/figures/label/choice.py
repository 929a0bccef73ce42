"""A clip to label."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """A clip to label: a text, and seconds [start, end) of a video, of which all or the middle is shown."""

    id: str  # of its row, and the place of its text there
    video: str
    group: str
    text: str
    start: float
    end: float
    part: dict[str, float | None] | None  # {"start", "end"}: the part of the video that is the clip; None: as scored


def name_of(row: str, narration: int) -> str:
    """The id of a clip in a manifest of labelled clips."""
    return f"{row}#{narration}"
