"""What a row of an index names, opened once for any number of windows: pictures and sound, or features of them."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np

from recipes.config import ClipFormat
from recipes.data.decode import BrokenClip, Clip, open_clip
from recipes.data.layouts.layout import Row
from recipes.data.layouts.youtube8m import Features, dequantize, read_features

Modality = Literal["video", "audio"]


@dataclass(frozen=True)
class Window:
    """What is seen and heard in some seconds of a file; None: a modality is absent, or is not read.

    `video` is uint8 (T, H, W, 3) and `audio` float32 (S,); of features float32 (T, 1024) and (T, 128).
    """

    start: float
    middle: float
    video: np.ndarray | None
    audio: np.ndarray | None


class Media:
    """Pictures and sound of the clip of a row, which lies between the seconds `first` and `end` of its file."""

    def __init__(self, row: Row, clip: Clip, fmt: ClipFormat, modality: Modality | None):
        self.clip, self.fmt, self.modality = clip, fmt, modality
        lengths = {"video": fmt.frames / fmt.fps, "audio": fmt.audio_seconds, None: fmt.seconds}
        self.length = lengths[modality]
        self.first, self.end = row["start"] or 0.0, clip.probe.duration
        if self.first >= self.end:
            times = f"begins at {self.first:g} s, after the end of the file at {self.end:g} s"
            raise BrokenClip(clip.path, f"the clip {times}")
        if row["end"] is not None:
            self.end = min(self.end, row["end"])
        self.room = max(0.0, self.end - self.first - self.length)

    def random_start(self, rng: np.random.Generator) -> float:
        """Any time from which a window lies within the clip."""
        return self.first + rng.uniform(0.0, self.room)

    def start_about(self, narration: Row, share: float) -> float:
        """The start of the window about a share of a narration, as far as that lies within the clip."""
        start, end = max(narration["start"], self.first), min(narration["end"], self.end)
        if start > end:
            raise BrokenClip(self.clip.path, f"a narration from {narration['start']:g} s on is outside of the clip")
        start = max(self.first, start + share * (end - start) - self.length / 2)
        return min(start, max(self.first, self.end - self.length))

    def window(self, start: float) -> Window:
        """After the end of the clip the last picture stays and the sound is zero."""
        video = self._pictures(start) if self.modality != "audio" else None
        audio = self._sound(start) if self.modality != "video" else None
        if self.modality == "audio" and audio is None:
            raise BrokenClip(self.clip.path, "it has no sound")
        return Window(start, start + self.length / 2, video, audio)

    def _pictures(self, start: float) -> np.ndarray:
        shown = self.fmt.frames
        if self._ends_before(start + self.fmt.seconds):
            shown = max(1, math.ceil(round((self.end - start) * self.fmt.fps, 6)))
        times = start + np.minimum(np.arange(self.fmt.frames), shown - 1) / self.fmt.fps
        return self.clip.pictures(times, self.fmt.short_side)

    def _sound(self, start: float) -> np.ndarray | None:
        sound = self.clip.sound(start, self.fmt.sample_rate, self.fmt.samples)
        if sound is not None and self._ends_before(start + self.fmt.seconds):
            sound[round((self.end - start) * self.fmt.sample_rate) :] = 0
        return sound

    def _ends_before(self, time: float) -> bool:
        """Whether the clip does. Where both are read, the end of a file looks and sounds right by itself."""
        return time > self.end and (self.modality is not None or self.end != self.clip.probe.duration)


class FeatureRecord:
    """The features of a row, one a second: the whole video is the clip."""

    def __init__(self, features: Features, fmt: ClipFormat):
        self.features, self.length = features, fmt.frames
        self.seconds = len(features.rgb)
        self.room = max(0, self.seconds - self.length)

    def random_start(self, rng: np.random.Generator) -> float:
        """Any second from which a window lies within the video."""
        return float(rng.integers(self.room + 1))

    def start_about(self, narration: Row, share: float) -> float:
        """The second from which the window is about a share of a narration."""
        middle = (1 - share) * narration["start"] + share * min(narration["end"], self.seconds)
        return float(int(min(max(0, middle - self.length / 2), self.room)))

    def window(self, start: float) -> Window:
        """After the end of the video its last second stays, as pictures do."""
        seconds = np.minimum(np.arange(int(start), int(start) + self.length), self.seconds - 1)
        rgb, audio = dequantize(self.features.rgb[seconds]), self.features.audio
        audio = None if audio is None else dequantize(audio[seconds])
        return Window(start, start + self.length / 2, rgb, audio)


Recording = Media | FeatureRecord


@contextmanager
def open_recording(row: Row, fmt: ClipFormat, modality: Modality | None) -> Iterator[Recording]:
    """Opens what a row of an index names, for one modality or both (None); raises, also inside, a BrokenClip."""
    if fmt.inputs == "features":
        yield FeatureRecord(read_features(row["video"]), fmt)
    else:
        with open_clip(row["video"]) as clip:
            yield Media(row, clip, fmt, modality)
