"""Reads one window of a video file with PyAV: seek, decode what the window shows, nothing else.

Times are seconds from the start of the clip. Whatever is wrong with a file becomes one exception, `BrokenClip`; so does
what asks for more than `limits` grants.
"""

import os
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard, Stream
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from recipes.data import limits, storage

PREROLL = 0.1  # seconds of sound decoded before the window: a codec's first frames after a seek are not yet exact
TRUNCATED = 0.5  # seconds of missing pictures, inside what the header declares, that make a file a truncated one


class BrokenClip(Exception):
    """A video file that cannot be used; `reason` is for people and has no path in it."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = str(path), reason

    def __reduce__(self) -> tuple[type["BrokenClip"], tuple[str, str]]:
        return BrokenClip, (self.path, self.reason)  # so that it crosses the border of a worker process


@dataclass(frozen=True)
class Probe:
    """What a file's header says. Duration in seconds, sizes in pixels before any rotation, average rate."""

    duration: float
    has_video: bool
    has_audio: bool
    width: int
    height: int
    fps: float


@dataclass(frozen=True)
class Window:
    """A decoded window: `video` uint8 (frames, H, W, 3), `audio` float32 (samples,) in [-1, 1], None if it has none."""

    video: np.ndarray
    audio: np.ndarray | None


def probe(path: str | Path) -> Probe:
    """Reads the header of a file.

    Args:
        path: a video file.
    Returns:
        What the header declares.
    Raises:
        BrokenClip: missing, empty, truncated before its header, not a media file, or without a duration.
    """
    with open_clip(path) as clip:
        return clip.probe


def read_window(
    path: str | Path, start: float, frames: int, fps: float, sample_rate: int, samples: int, short_side: int | None
) -> Window:
    """Opens a file and reads one window of it: see `Clip.window`."""
    with open_clip(path) as clip:
        return clip.window(start, frames, fps, sample_rate, samples, short_side)


@contextmanager
def open_clip(locator: str | Path) -> Iterator["Clip"]:
    """Opens a file once, for a look at its header and any number of windows.

    Args:
        locator: a video, see `recipes.data.storage`.
    Returns:
        A context manager that yields a `Clip`; every decoding error inside it leaves as `BrokenClip`.
    """
    try:
        file = storage.open_bytes(locator)
    except FileNotFoundError as error:
        raise BrokenClip(locator, "there is no such file") from error
    except OSError as error:
        raise BrokenClip(locator, f"it cannot be opened: {error.strerror or error}") from error
    with file, clip_in(file, str(locator)) as clip:
        yield clip


@contextmanager
def clip_in(file: BinaryIO, name: str) -> Iterator["Clip"]:
    """The clip in an open file, as `open_clip`; `name` is for people."""
    try:
        if not file.seek(0, os.SEEK_END):
            raise BrokenClip(name, "the file is empty")
        file.seek(0)
        with _open(file, name) as container:
            clip = Clip(name, container)
            try:
                yield clip
            finally:
                clip.finish()
    except (av.FFmpegError, ValueError) as error:  # ValueError: a stream whose format changes half-way
        detail = getattr(error, "strerror", None) or error
        raise BrokenClip(name, f"truncated, corrupt or not a media file ({detail})") from error
    except OSError as error:
        raise BrokenClip(name, f"it cannot be read: {error.strerror or error}") from error


def _open(file: BinaryIO, name: str) -> InputContainer:
    try:
        return av.open(
            file, metadata_errors="replace", options={"max_pixels": str(limits.PIXELS)},
            container_options={"format_whitelist": limits.FORMATS, "protocol_whitelist": limits.PROTOCOLS},
        )  # fmt: skip
    except av.ArgumentError as error:  # which is what FFmpeg makes of a format that is not on its list
        raise BrokenClip(name, f"not one of the formats that are read: {limits.FORMATS}") from error


class Clip:
    """An open file. Use `open_clip`."""

    def __init__(self, path: str, container: InputContainer):
        self.path, self.container = path, container
        self.demuxer: Iterator[Packet] | None = None
        if len(container.streams) > limits.STREAMS:
            raise BrokenClip(path, f"it has {len(container.streams)} streams, more than {limits.STREAMS}")
        known = [stream for stream in container.streams if stream.codec_context is not None]
        self.video = next((stream for stream in known if isinstance(stream, VideoStream)), None)
        self.audio = next((stream for stream in known if isinstance(stream, AudioStream)), None)
        self.origin = max(0.0, (container.start_time or 0) / av.time_base)
        self.probe = self._probe()
        for stream in filter(None, (self.video, self.audio)):  # one thread: the loader's workers are the parallelism
            stream.codec_context.thread_type, stream.codec_context.thread_count = "NONE", 1
        if self.video:  # refuses what has more before it takes the memory, should they grow after the header
            self.video.codec_context.options = {"max_pixels": str(limits.PIXELS)}

    def _probe(self) -> Probe:
        duration = (self.container.duration or 0) / av.time_base
        if duration <= 0:
            raise BrokenClip(self.path, "declares no duration; remux it (ffmpeg -i FILE -c copy NEW.mp4)")
        if duration > limits.SECONDS:
            raise BrokenClip(self.path, f"declares a duration of {duration:.0f} s, more than {limits.SECONDS} s")
        context = self.video.codec_context if self.video else None
        width, height = (context.width, context.height) if context else (0, 0)
        self._check_picture(width, height)
        fps = float(self.video.average_rate or 0) if self.video else 0.0
        return Probe(duration, self.video is not None, self.audio is not None, width, height, fps)

    def _check_picture(self, width: int, height: int) -> None:
        if width * height > limits.PIXELS or max(width, height) > limits.SIDE:
            bounds = f"{limits.PIXELS} pixels or {limits.SIDE} on a side"
            raise BrokenClip(self.path, f"its pictures of {width}x{height} have more than {bounds}")

    def window(
        self, start: float, frames: int, fps: float, sample_rate: int, samples: int, short_side: int | None
    ) -> Window:
        """Decodes the window that begins at `start`, pictures and sound alike.

        Picture i is the one on screen at start + i / fps, by presentation time stamps. After the end of the clip the
        last picture stays and the sound is zero. Sound is mixed down to one channel.

        Args:
            start: seconds from the start of the clip.
            frames, fps: how many pictures, and how many a second.
            sample_rate, samples: of the sound to return.
            short_side: pictures whose shorter side is longer than this many pixels are scaled down to it.
        Returns:
            The window; its audio is None where the clip has no sound at all in it.
        Raises:
            BrokenClip: no video stream, truncated before the end of the window, or corrupt.
        """
        video = self.pictures(start + np.arange(frames) / fps, short_side)
        return Window(video, self.sound(start, sample_rate, samples))

    def pictures(self, times: np.ndarray, short_side: int | None) -> np.ndarray:
        """The pictures of `window` alone, on screen at `times` (n,), which increase: uint8 (n, H, W, 3)."""
        stream = self.video
        if stream is None:
            raise BrokenClip(self.path, "it has no video stream that can be decoded")
        # Half a millisecond more, against rounding: 3 * 0.1 s must find the picture stamped 0.3 s.
        ticks = [int((t + self.origin + 5e-4) / stream.time_base) for t in times]
        packets = self._packets(stream, ticks[0], ticks[-1])
        stamps = sorted(p.pts for p in packets)
        if not stamps:
            raise BrokenClip(self.path, "truncated or corrupt: no picture can be read")
        self._check_end(max(packets, key=lambda p: p.pts), times[-1])
        wanted = [stamps[max(0, bisect_right(stamps, t) - 1)] for t in ticks]
        shown = self._decode_pictures(packets, set(wanted), short_side)
        have = sorted(shown)
        if not have:
            raise BrokenClip(self.path, "truncated or corrupt: no picture of the window can be decoded")
        return np.stack([shown[have[max(0, bisect_right(have, stamp) - 1)]] for stamp in wanted])

    def _packets(self, stream: Stream, first: int, last: int) -> list[Packet]:
        """The packets from the last key frame at or before `first` to the last one shown by `last` (stream ticks)."""
        for other in self.container.streams:
            other.discard = Discard.default if other is stream else Discard.all
        target, back = first, max(1, int(2 / stream.time_base))
        while True:
            self.container.seek(max(target, 0), stream=stream)
            packets, size = [], 0
            for packet in self._following(stream):
                if packet.dts is not None and packet.dts > last:  # dts <= pts, so nothing shown by `last` can follow
                    break
                if packet.pts is not None:
                    packets.append(packet)
                    size += packet.size
                if size > limits.BYTES or len(packets) > limits.PACKETS:
                    bounds = f"{limits.BYTES} bytes or {limits.PACKETS} packets"
                    raise BrokenClip(self.path, f"one window takes more than {bounds}: are there key frames?")
            # A container may seek by decoding time, and land on a key frame that is shown after `first`.
            if target <= 0 or (packets and min(p.pts for p in packets) <= first):
                return packets
            target, back = target - back, 2 * back

    def _following(self, stream: Stream) -> Iterator[Packet]:
        """The packets of a stream from the place that was sought."""
        self.demuxer = self.demuxer or self.container.demux()
        for packet in self.demuxer:
            if packet.stream_index == stream.index:
                yield packet
        self.demuxer = None

    def finish(self) -> None:
        """Lead the demuxer to the end of the file: PyAV frees its buffer there, not where it is left before."""
        if self.demuxer is None:
            return
        for stream in self.container.streams:
            stream.discard = Discard.all
        with suppress(av.FFmpegError, OSError):
            self.container.seek(self.container.duration)
            deque(self.demuxer, maxlen=0)

    def _check_end(self, last: Packet, time: float) -> None:
        """Tells a clip that is over from one that was cut off: the header promises more than the file holds."""
        stream, end = self.video, float((last.pts + (last.duration or 0)) * last.time_base) - self.origin
        declared = float(stream.duration * stream.time_base) if stream.duration else self.probe.duration
        if end < min(time, declared) - TRUNCATED:
            raise BrokenClip(self.path, f"truncated: pictures end at {end:.1f} s of {declared:.1f} s")

    def _decode_pictures(
        self, packets: list[Packet], wanted: set[int], short_side: int | None
    ) -> dict[int, np.ndarray]:
        """Decodes in order, passing over pictures that are neither wanted nor referred to; RGB by time stamp."""
        context, reformatter, shown = self.video.codec_context, VideoReformatter(), {}
        for packet in [*packets, None]:
            if packet is not None:
                context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
            for frame in context.decode(packet):
                if frame.pts in wanted:
                    self._check_picture(frame.width, frame.height)
                    shown[frame.pts] = _rgb(frame, short_side, reformatter)
            if len(shown) == len(wanted):
                break
        return shown

    def sound(self, start: float, sample_rate: int, samples: int) -> np.ndarray | None:
        """The sound of `window` alone, which a file without pictures has too: float32 (samples,), or None."""
        stream = self.audio
        if stream is None:
            return None
        begin, end = start + self.origin - PREROLL, start + self.origin + samples / sample_rate
        packets = self._packets(stream, int(begin / stream.time_base), int(end / stream.time_base))
        frames = self._decode_sound(packets, sample_rate)
        if not frames:
            return None
        first = frames[0].time
        heard = _mono([f.to_ndarray() for f in frames], frames[0], sample_rate)
        offset = round((start + self.origin - first) * sample_rate)  # where the window begins in what was heard
        part = heard[max(0, offset) : max(0, offset + samples)]
        if not part.size:
            return None
        sound = np.zeros(samples, np.float32)
        sound[max(0, -offset) :][: part.size] = part
        return np.clip(sound, -1.0, 1.0)

    def _decode_sound(self, packets: list[Packet], sample_rate: int) -> list[av.AudioFrame]:
        frames, samples = [], 0.0
        for packet in [*packets, None]:
            for frame in self.audio.codec_context.decode(packet):
                frames.append(frame)
                samples += frame.samples * max(frame.layout.nb_channels, sample_rate / frame.sample_rate)
                if samples > limits.SAMPLES:
                    raise BrokenClip(self.path, f"one window has more than {limits.SAMPLES} samples of sound")
        return frames


def _rgb(frame: av.VideoFrame, short_side: int | None, reformatter: VideoReformatter) -> np.ndarray:
    """A picture the right way up, scaled down to its short side: uint8 (H, W, 3)."""
    scale = min(1.0, short_side / min(frame.width, frame.height)) if short_side else 1.0
    width, height = round(frame.width * scale), round(frame.height * scale)
    # Where the width is odd, swscale has no short cut for packed colours: in planes it makes the same picture faster.
    layout = "gbrp" if width % 2 else "rgb24"
    rgb = reformatter.reformat(frame, width, height, layout, interpolation="BILINEAR", threads=1)
    return np.rot90(rgb.to_ndarray(), frame.rotation // 90)


def _mono(chunks: list[np.ndarray], like: av.AudioFrame, sample_rate: int) -> np.ndarray:
    """Joins decoded sound (many small frames are slow to resample), mixes it down, resamples it: float32 (n,)."""
    whole = av.AudioFrame.from_ndarray(np.concatenate(chunks, axis=1), like.format.name, like.layout.name)
    whole.sample_rate, whole.pts, whole.time_base = like.sample_rate, 0, Fraction(1, like.sample_rate)
    resampler = AudioResampler("fltp", "mono", sample_rate, options={"rematrix_maxval": "1"})  # channels: mean, not sum
    done = [f for f in [*resampler.resample(whole), *resampler.resample(None)] if f is not None]
    return np.concatenate([f.to_ndarray()[0] for f in done])
