"""A clip as a page plays it: a small mp4 with sound, and its poster."""

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from recipes.data.corpus.write import write_mp4
from recipes.data.decode import BrokenClip, Clip
from recipes.figures.html import encoded

SHORT_SIDE = 180  # pixels of the pictures at most
FRAME_RATE = 30  # at most
SAMPLE_RATE = 24_000
LONGEST = 60.0  # seconds of a window
POSTER_AT = 0.625  # share of the window


class Played(NamedTuple):
    """What a player shows and sounds."""

    pictures: np.ndarray  # uint8 (T, H, W, 3), with even sides, as H.264 wants them
    sound: np.ndarray | None  # float32 (S,), SAMPLE_RATE a second
    rate: int  # pictures a second: the video's own, whole, or less


def read_window(clip: Clip, start: float, end: float) -> Played:
    """What a player shows of the seconds [start, end) of an open clip."""
    seconds = end - start
    if not 0 < seconds <= LONGEST:
        raise BrokenClip(clip.path, f"expected a window of at most {LONGEST:g} s, got {start:g} to {end:g} s")
    rate = min(FRAME_RATE, max(1, round(clip.probe.fps)))
    frames = max(1, math.ceil(round(seconds * rate, 3)))
    window = clip.window(start, frames, rate, SAMPLE_RATE, round(seconds * SAMPLE_RATE), SHORT_SIDE)
    height, width = (side - side % 2 for side in window.video.shape[1:3])
    if not height or not width:
        raise BrokenClip(clip.path, "its pictures are less than two pixels wide or high")
    return Played(np.ascontiguousarray(window.video[:, :height, :width]), window.audio, rate)


def files_of(played: Played, folder: Path) -> dict[str, bytes]:
    """The files {".mp4", "-poster.jpg"} of a player; ``folder`` exists, for the mp4 while it is written."""
    with TemporaryDirectory(dir=folder) as place:
        file = Path(place, "clip.mp4")
        write_mp4(file, played.pictures, played.rate, played.sound, SAMPLE_RATE)
        player = file.read_bytes()
    return {".mp4": player, "-poster.jpg": jpeg(played.pictures[int(POSTER_AT * len(played.pictures))])}


def jpeg(picture: np.ndarray) -> bytes:
    """A picture, uint8 (H, W, 3), as a file."""
    return encoded(picture, "JPEG", quality=80)
