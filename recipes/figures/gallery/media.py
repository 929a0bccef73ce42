"""What a gallery shows of a clip: a small mp4 with sound, key frames, loudness, and what the model sees."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recipes.config import ClipFormat
from recipes.data.augment import center
from recipes.data.decode import Clip, open_clip
from recipes.figures import player

KEY_FRAMES = 4
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
        played = player.read_window(clip, row.start, row.end)
    pictures = played.pictures
    strip = side_by_side(pictures[[int((i + 0.5) * len(pictures) / KEY_FRAMES) for i in range(KEY_FRAMES)]])
    files = player.files_of(played, folder) | {".jpg": player.jpeg(strip)}
    return Shown(files, strip, [] if played.sound is None else outline(played.sound), video)


def model_view(row: Row, fmt: ClipFormat) -> np.ndarray:
    """What the model sees of a clip, uint8 (T, S, S, 3), as in evaluation."""
    with open_clip(row.video) as clip:
        return _model_view(clip, row, fmt)


def _model_view(clip: Clip, row: Row, fmt: ClipFormat) -> np.ndarray:
    window = clip.window(row.start, fmt.frames, fmt.fps, fmt.sample_rate, fmt.samples, fmt.short_side)
    return center(window.video, fmt.size)


def outline(sound: np.ndarray) -> list[float]:
    """Peak loudness in OUTLINE equal stretches of sound (S,), as shares of the loudest."""
    peaks = np.array([np.abs(part).max(initial=0.0) for part in np.array_split(sound, OUTLINE)])
    return (peaks / max(peaks.max(), 1e-6)).round(2).tolist()


def side_by_side(frames: np.ndarray) -> np.ndarray:
    """Pictures (N, H, W, 3) in a row on white, uint8 (H, N W + (N - 1) GAP, 3)."""
    padded = np.pad(frames, ((0, 0), (0, 0), (0, GAP), (0, 0)), constant_values=255)
    return np.concatenate(list(padded), axis=1)[:, :-GAP]
