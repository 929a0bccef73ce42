"""Reads windows of a video file with PyAV. Times are seconds from the start of the file.

Whatever is wrong with a file, or asks for more than `limits` grants, becomes a `BrokenClip`.
"""

import os
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import dropwhile
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
from recipes.data.encoding import printable

# Seconds of sound decoded before the window: the first frames after a seek are not exact. If so few of them can be
# decoded that the window itself is damaged, the next number is tried.
PREROLLS = (0.1, 1.0, 10.0)
# Containers that may stamp pictures in the order of decoding: a second more is read.
UNORDERED = {"avi", "asf", "mpeg"}
# Codecs in MPEG program streams. Few packets have a stamp, so all before the window are read to guess the others.
STAMPLESS = {"mpeg1video", "mpeg2video", "mpeg4"}
SKIPPING = {"h264", "hevc"}  # decoders that may pass over pictures without a change to the others: see the tests
TRUNCATED = 0.5  # seconds of pictures that the header declares and a truncated file lacks, at least


class BrokenClip(Exception):
    """A video file that cannot be used; `reason` is for people, without the path."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"{printable(str(path))}: {printable(reason)}")
        self.path, self.reason = str(path), reason

    def __reduce__(self) -> tuple[type["BrokenClip"], tuple[str, str]]:
        return BrokenClip, (self.path, self.reason)  # for pickle, on the way out of a worker process


@dataclass(frozen=True)
class Probe:
    """What a file's header says: seconds, pixels before any rotation, average rate."""

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


@contextmanager
def open_clip(locator: str | Path) -> Iterator["Clip"]:
    """Opens a video, see `recipes.data.storage`, for any number of windows; every error inside becomes `BrokenClip`."""
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
    """As `open_clip`, of an open file; `name` is for people."""
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
    except (av.FFmpegError, ValueError) as error:  # ValueError: the format of a stream changes
        detail = getattr(error, "strerror", None) or error
        raise BrokenClip(name, f"truncated, corrupt or not a media file ({detail})") from error
    except OSError as error:
        raise BrokenClip(name, f"it cannot be read: {error.strerror or error}") from error
    except BrokenClip:
        raise
    except IndexError as error:  # PyAV knows the streams of the header alone
        reason = "a stream appears after the header; remux it (ffmpeg -i FILE -c copy NEW.mp4)"
        raise BrokenClip(name, reason) from error
    except Exception as error:  # anything else that a decoder raises over a damaged file
        raise BrokenClip(name, f"it cannot be decoded ({type(error).__name__}: {error})") from error


def _open(file: BinaryIO, name: str) -> InputContainer:
    whitelists = {"format_whitelist": limits.FORMATS, "protocol_whitelist": limits.PROTOCOLS}
    pixels = {"max_pixels": str(limits.PIXELS)}
    try:
        return av.open(file, metadata_errors="replace", options=pixels, container_options=whitelists)
    except av.ArgumentError as error:  # the format is not on the list
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
        self.unstamped = container.format.name == "mpeg"
        self.probe = self._probe()
        for stream in filter(None, (self.video, self.audio)):  # one thread: the loader's workers are the parallelism
            stream.codec_context.thread_type, stream.codec_context.thread_count = "NONE", 1
        if self.video:  # pictures may grow after the header: the decoder refuses them before it takes the memory
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
        """Pictures and sound of the window that begins at `start`; picture i is on screen at start + i / fps."""
        video = self.pictures(start + np.arange(frames) / fps, short_side)
        return Window(video, self.sound(start, sample_rate, samples))

    def pictures(self, times: np.ndarray, short_side: int | None) -> np.ndarray:
        """The pictures on screen at `times` (n,), which increase: uint8 (n, H, W, 3), scaled down to the short side.

        A decoder that reads the whole file shows the same ones. Decoding begins at a key frame if every picture comes
        out whole, and if not, again at an earlier one: pictures shown before a key frame but stored behind it refer to
        what was not read, and some codecs refresh little by little. After the end of the file the last picture stays.
        """
        stream = self.video
        if stream is None:
            raise BrokenClip(self.path, "it has no video stream that can be decoded")
        # Half a millisecond against rounding: 3 * 0.1 s must find the picture stamped 0.3 s.
        ticks = [int((t + self.origin + 5e-4) / stream.time_base) for t in times]
        codec = stream.codec_context.codec.name
        if self.unstamped and codec not in STAMPLESS:
            raise BrokenClip(self.path, f"{codec} in an MPEG program stream has no time stamps; remux it to mp4")
        skip, target, back = codec in SKIPPING, ticks[0], max(1, int(2 / stream.time_base))
        beginning = min(0, stream.start_time or 0)
        target = beginning if self.unstamped else target
        ahead = int(1 / stream.time_base) if self.container.format.name in UNORDERED else 0
        while True:
            first = target <= (stream.start_time or 0)
            packets = _from_key_frame(self._packets(stream, beginning if first else target, ticks[-1] + ahead))
            if not packets and first:
                raise BrokenClip(self.path, "truncated or corrupt: no picture can be read")
            stamps = sorted(p.pts for p in packets if p.pts is not None)
            stamped = len(stamps) == len(packets) > 0
            if first or (stamped and packets[0].pts <= ticks[0]):
                wanted = [stamps[max(0, bisect_right(stamps, t) - 1)] for t in ticks] if stamped else []
                shown = self._decode_pictures(packets, ticks, wanted if skip else None, short_side)
                if shown and ([stamp for stamp, _ in shown] == wanted or (first and not skip)):
                    if stamps:
                        self._check_end(max((p for p in packets if p.pts is not None), key=lambda p: p.pts), times[-1])
                    return np.stack([rgb for _, rgb in shown])
                if first and not skip:
                    raise BrokenClip(self.path, "truncated or corrupt: no picture of the window can be decoded")
            if skip and first:
                skip = False
            elif packets and not stamped:
                target = beginning
            else:
                target, back = target - back, 2 * back

    def _packets(self, stream: Stream, target: int, last: int) -> list[Packet]:
        """The packets from a key frame near `target`, mostly before it, to the last one shown by `last` (ticks)."""
        for other in self.container.streams:
            other.discard = Discard.default if other is stream else Discard.all
        try:  # sound may begin before zero, with what the encoder needs to start
            self.container.seek(target, stream=stream)
        except av.FFmpegError:
            self.container.seek(0, stream=stream)
        packets, size = [], 0
        for packet in self._following(stream):
            # dts <= pts: nothing that is shown by `last` follows. A stream that begins later shows its first picture.
            if packet.dts is not None and packet.dts > last and packets:
                break
            if packet.size:
                packets.append(packet)
                size += packet.size
            if size > limits.BYTES or len(packets) > limits.PACKETS:
                bounds = f"{limits.BYTES} bytes or {limits.PACKETS} packets"
                raise BrokenClip(self.path, f"one window takes more than {bounds}: are there key frames?")
        return packets

    def _following(self, stream: Stream) -> Iterator[Packet]:
        self.demuxer = self.demuxer or self.container.demux()
        for packet in self.demuxer:
            if packet.stream_index == stream.index:
                yield packet
        self.demuxer = None

    def finish(self) -> None:
        """Leads the demuxer to the end of the file, where PyAV frees its buffer."""
        if self.demuxer is None:
            return
        for stream in self.container.streams:
            stream.discard = Discard.all
        with suppress(Exception):  # nothing more is read
            self.container.seek(self.container.duration)
            deque(self.demuxer, maxlen=0)

    def _check_end(self, last: Packet, time: float) -> None:
        """Refuses a file that was cut off: its header declares more pictures than it holds."""
        stream, end = self.video, float((last.pts + (last.duration or 0)) * last.time_base) - self.origin
        declared = float(stream.duration * stream.time_base) if stream.duration else self.probe.duration
        if end < min(time, declared) - TRUNCATED:
            raise BrokenClip(self.path, f"truncated: pictures end at {end:.1f} s of {declared:.1f} s")

    def _decode_pictures(
        self, packets: list[Packet], ticks: list[int], wanted: list[int] | None, short_side: int | None
    ) -> list[tuple[int | None, np.ndarray]]:
        """Time stamp (None: damaged) and RGB on screen at each tick; skips what is not `wanted`, if that is known."""
        context, reformatter = self.video.codec_context, VideoReformatter()
        shown: list[tuple[int | None, np.ndarray]] = []
        current: tuple[int, av.VideoFrame] | None = None

        def show() -> None:
            stamp, frame = current
            self._check_picture(frame.width, frame.height)
            if shown and shown[-1][0] == stamp:
                shown.append(shown[-1])
            else:
                shown.append((None if frame.is_corrupt else stamp, _rgb(frame, short_side, reformatter)))

        for packet in [*packets, None]:
            if packet is not None:
                passed = wanted is not None and packet.pts not in wanted
                context.skip_frame = "NONREF" if passed else "DEFAULT"
            for frame in context.decode(packet):
                # If FFmpeg guesses stamps, the time at which a picture leaves the decoder is the better guess.
                stamp = frame.dts if self.unstamped and frame.dts is not None else frame.pts
                if stamp is None or (current is not None and stamp == current[0]):
                    continue
                if current is not None and stamp < current[0]:
                    raise BrokenClip(self.path, "the time stamps of its pictures go backwards; remux it to mp4")
                while current is not None and len(shown) < len(ticks) and stamp > ticks[len(shown)]:
                    show()
                current = stamp, frame
            if len(shown) == len(ticks) and self.container.format.name not in UNORDERED:
                return shown
        while current is not None and len(shown) < len(ticks):
            show()
        return shown

    def sound(self, start: float, sample_rate: int, samples: int) -> np.ndarray | None:
        """The sound from `start` on, float32 (samples,), or None without any; a file without pictures has it, too."""
        stream = self.audio
        if stream is None:
            return None
        begin, end = start + self.origin, start + self.origin + samples / sample_rate
        for preroll in (begin,) if self.unstamped else PREROLLS:
            packets = self._packets(stream, int((begin - preroll) / stream.time_base), int(end / stream.time_base))
            frames, lost = self._decode_sound(packets, sample_rate)
            if not lost or (frames and frames[0].time <= begin):
                break
        if lost and not frames:
            raise BrokenClip(self.path, "truncated or corrupt: no sound of the window can be decoded")
        if not frames:
            return None
        heard = _mono([f.to_ndarray() for f in frames], frames[0], sample_rate)
        if not np.isfinite(heard).all():
            raise BrokenClip(self.path, "its sound holds numbers that are not finite")
        offset = round((begin - frames[0].time) * sample_rate)  # where the window begins in what was heard
        part = heard[max(0, offset) : max(0, offset + samples)]
        if not part.size:
            return None
        sound = np.zeros(samples, np.float32)
        sound[max(0, -offset) :][: part.size] = part
        return np.clip(sound, -1.0, 1.0)

    def _decode_sound(self, packets: list[Packet], sample_rate: int) -> tuple[list[av.AudioFrame], int]:
        """The sound of packets, and how many were lost before the first that could be decoded: a seek cuts some."""
        frames, lost, samples = [], 0, 0.0
        for packet in [*packets, None]:
            try:
                decoded = self.audio.codec_context.decode(packet)
            except av.FFmpegError:
                if frames:
                    raise
                lost += 1
                continue
            for frame in decoded:
                channels = frame.layout.nb_channels
                if channels > limits.CHANNELS:
                    raise BrokenClip(self.path, f"its sound has {channels} channels, more than {limits.CHANNELS}")
                if frame.sample_rate > limits.RATE:
                    raise BrokenClip(self.path, f"its sound has {frame.sample_rate} Hz, more than {limits.RATE}")
                frames.append(frame)
                samples += frame.samples * max(channels, sample_rate / frame.sample_rate)
                if samples > limits.SAMPLES:
                    raise BrokenClip(self.path, f"one window has more than {limits.SAMPLES} samples of sound")
        return frames, lost


def _from_key_frame(packets: list[Packet]) -> list[Packet]:
    """Drops packets before the first key frame, of which nothing can be decoded."""
    return list(dropwhile(lambda packet: not packet.is_keyframe, packets))


def _rgb(frame: av.VideoFrame, short_side: int | None, reformatter: VideoReformatter) -> np.ndarray:
    """A picture the right way up, scaled down to its short side: uint8 (H, W, 3)."""
    scale = min(1.0, short_side / min(frame.width, frame.height)) if short_side else 1.0
    width, height = round(frame.width * scale), round(frame.height * scale)
    # For an odd width swscale has no short cut for packed colours; planes give the same picture faster.
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
