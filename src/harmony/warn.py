"""Warnings that point at the line of the user who called the library."""

import sys
import warnings
from types import FrameType


def warn(message: str) -> None:
    """Warn at the line outside the library that called into it; Python shows it once for each such line."""
    warnings.warn(message[0].upper() + message[1:], stacklevel=_depth() + 1)


def call_site() -> tuple[str, int]:
    """File and line outside the library that called into it."""
    frame = sys._getframe(_depth())
    return frame.f_code.co_filename, frame.f_lineno


def _depth() -> int:
    """How many calls above its caller the first frame is that no frame of the library stands above."""
    frame: FrameType | None = sys._getframe(1)
    depth, outside = 0, 0
    while frame is not None:
        depth += 1
        if frame.f_globals.get("__name__", "").partition(".")[0] == "harmony":
            outside = depth
        frame = frame.f_back
    return min(outside, depth - 1)
