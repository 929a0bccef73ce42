"""What a gallery shows of a clip: a small mp4 with sound, key frames, loudness, and what the model sees."""

import math
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from recipes.config import ClipFormat
from recipes.data.augment import center
from recipes.data.corpus.write import write_mp4
from recipes.data.decode import BrokenClip, Clip, open_clip
from recipes.figures.html import encoded

KEY_FRAMES = 4
SHORT_SIDE = 180  # pixels of the player's pictures at most
FRAME_RATE = 30  # at most
SAMPLE_RATE = 24_000
LONGEST = 60.0  # seconds of a window
OUTLINE = 60  # loudness values of a window
GAP = 4  # pixels between key frames


@dataclass(frozen=True)
class Row:
    """One scored clip: the window [start, end) of a video, seconds, its caption, and its cosine."""

    clip: int
    id: str
    video: str
    caption: str
    start: float
    end: float
    cosine: float


@dataclass(frozen=True)
class Shown:
    """A clip as it is shown."""

    files: dict[str, bytes]  # what to write: {".mp4", ".jpg" (the strip), "-poster.jpg"}
    strip: np.ndarray  # the key frames side by side, uint8 (H, W, 3)
    outline: list[float]  # loudness over the window, (OUTLINE,) in [0, 1]; empty without sound
    video: np.ndarray  # what the model sees, uint8 (T, S, S, 3)

    @property
    def ratio(self) -> float:
        """Width of the strip by its height."""
        return round(self.strip.shape[1] / self.strip.shape[0], 3)


def cut_clip(row: Row, fmt: ClipFormat, folder: Path) -> Shown:
    """Read a clip's window for people and for the model; ``folder`` exists, for the mp4 while it is written."""
    with open_clip(row.video) as clip:
        video = _model_view(clip, row, fmt)
        pictures, sound, rate = _player_view(clip, row)
    with TemporaryDirectory(dir=folder) as place:
        file = Path(place, "clip.mp4")
        write_mp4(file, pictures, rate, sound, SAMPLE_RATE)
        player = file.read_bytes()
    frames = pictures[[int((i + 0.5) * len(pictures) / KEY_FRAMES) for i in range(KEY_FRAMES)]]
    strip = side_by_side(frames)
    files = {".mp4": player}
    for suffix, picture in ((".jpg", strip), ("-poster.jpg", frames[KEY_FRAMES // 2])):
        files[suffix] = encoded(picture, "JPEG", quality=80)
    return Shown(files, strip, [] if sound is None else outline(sound), video)


def model_view(row: Row, fmt: ClipFormat) -> np.ndarray:
    """What the model sees of a clip, uint8 (T, S, S, 3), as in evaluation."""
    with open_clip(row.video) as clip:
        return _model_view(clip, row, fmt)


def _model_view(clip: Clip, row: Row, fmt: ClipFormat) -> np.ndarray:
    window = clip.window(row.start, fmt.frames, fmt.fps, fmt.sample_rate, fmt.samples, fmt.short_side)
    return center(window.video, fmt.size)


def _player_view(clip: Clip, row: Row) -> tuple[np.ndarray, np.ndarray | None, int]:
    """Pictures with even sides, as H.264 wants them, sound, and the frame rate: the video's own, whole, or less."""
    seconds = row.end - row.start
    if not 0 < seconds <= LONGEST:
        raise BrokenClip(clip.path, f"expected a window of at most {LONGEST:g} s, got {row.start:g} to {row.end:g} s")
    rate = min(FRAME_RATE, max(1, round(clip.probe.fps)))
    frames = max(1, math.ceil(round(seconds * rate, 3)))
    window = clip.window(row.start, frames, rate, SAMPLE_RATE, round(seconds * SAMPLE_RATE), SHORT_SIDE)
    height, width = (side - side % 2 for side in window.video.shape[1:3])
    if not height or not width:
        raise BrokenClip(clip.path, "its pictures are less than two pixels wide or high")
    return np.ascontiguousarray(window.video[:, :height, :width]), window.audio, rate


def outline(sound: np.ndarray) -> list[float]:
    """Peak loudness in OUTLINE equal stretches of sound (S,), as shares of the loudest."""
    peaks = np.array([np.abs(part).max(initial=0.0) for part in np.array_split(sound, OUTLINE)])
    return (peaks / max(peaks.max(), 1e-6)).round(2).tolist()


def side_by_side(frames: np.ndarray) -> np.ndarray:
    """Pictures (N, H, W, 3) in a row on white, uint8 (H, N W + (N - 1) GAP, 3)."""
    padded = np.pad(frames, ((0, 0), (0, 0), (0, GAP), (0, 0)), constant_values=255)
    return np.concatenate(list(padded), axis=1)[:, :-GAP]
