"""Writes small real mp4, avi and wav files for tests of decoding and loading; their content shows its own time."""

import wave
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np

from recipes.data.decode import Probe, Window, open_clip

BITS = 8  # of a picture's number
TICKS = 1000  # a second, of the pictures' time stamps
LAYOUTS = {1: "mono", 2: "stereo"}


def picture(number: int, size: tuple[int, int]) -> np.ndarray:
    """A picture that shows its number: 8 vertical bars, black for 0, white for 1, lowest bit on the left."""
    width, height = size
    bits = (number >> np.arange(BITS)) & 1
    bars = np.repeat(bits, -(-width // bits.size))[:width] * 255
    return np.broadcast_to(bars[None, :, None], (height, width, 3)).astype(np.uint8)


def number_of(rgb: np.ndarray) -> int:
    """The number that a picture of any size shows."""
    middle = rgb[rgb.shape[0] // 2].mean(-1)
    places = ((np.arange(BITS) + 0.5) * middle.size / BITS).astype(int)
    return int(((middle[places] > 128) << np.arange(BITS)).sum())


def tone(second: float | np.ndarray) -> float | np.ndarray:
    """The frequency in hertz of the sound in a second of the clip."""
    return 300.0 + 100.0 * second


def frequency_of(audio: np.ndarray, sample_rate: int) -> float:
    """The loudest frequency of a piece of sound, in hertz."""
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(audio.size)))
    return float(np.fft.rfftfreq(audio.size, 1 / sample_rate)[spectrum.argmax()])


def write(
    path: Path,
    seconds: float = 4.0,
    fps: int = 10,
    size: tuple[int, int] = (96, 64),
    sample_rate: int = 16_000,
    channels: int = 1,
    audio: bool = True,
    video: bool = True,
    times: list[float] | None = None,
    header_first: bool = False,
    rotation: int = 0,
    audio_seconds: float | None = None,
) -> Path:
    """Writes H.264 and AAC with a key frame every second and B-frames.

    Picture i shows the number i; the sound of second s is a sine of `tone(s)`, on all channels.

    Args:
        path: the file.
        seconds: the length.
        fps, size: of the pictures; size is (width, height).
        sample_rate, channels: of the sound.
        audio, video: which streams to write.
        times: for a variable frame rate, picture i appears at times[i] seconds and the last one stays until `seconds`.
        header_first: write the header, which has the length, at the beginning, so that it survives truncation.
        rotation: by which the header asks players to turn the pictures, degrees counter-clockwise.
        audio_seconds: length of the sound, if not that of the pictures.
    Returns:
        The path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    times = list(np.arange(round(seconds * fps)) / fps) if times is None else times
    with av.open(str(path), "w", options={"movflags": "faststart"} if header_first else {}) as container:
        pictures = _picture_stream(container, fps, size, rotation) if video else None
        sound = container.add_stream("aac", rate=sample_rate, layout=LAYOUTS[channels]) if audio else None
        sines, sent = _wave(audio_seconds or seconds, sample_rate, channels), 0
        for number, (time, end) in enumerate(pairwise([*times, seconds])):
            if pictures is not None:
                frame = av.VideoFrame.from_ndarray(picture(number, size), format="rgb24")
                frame.pts, frame.duration = round(time * TICKS), round((end - time) * TICKS)
                container.mux(pictures.encode(frame))
            while sound is not None and sent < min(end * sample_rate, sines.shape[1]):
                chunk = av.AudioFrame.from_ndarray(sines[:, sent : sent + 1024].copy(), "fltp", LAYOUTS[channels])
                chunk.sample_rate, chunk.pts, chunk.time_base = sample_rate, sent, Fraction(1, sample_rate)
                container.mux(sound.encode(chunk))
                sent += chunk.samples
        for stream in filter(None, (pictures, sound)):
            container.mux(stream.encode(None))
    return path


def write_avi(path: Path, pixels: np.ndarray, fps: int = 25) -> Path:
    """Writes pictures, uint8 (T, H, W, 3), as UCF101 has them: MPEG-4 (XviD's codec) in avi, without sound."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[1:3], "yuv420p"
        stream.codec_context.codec_tag, stream.bit_rate = "XVID", 400_000
        for rgb in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def write_wav(path: Path, samples: np.ndarray, sample_rate: int = 44_100) -> Path:
    """Writes mono sound, float (n,) in [-1, 1], as ESC-50 has it: 16 bits in wav."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def truncate(path: Path, share: float) -> Path:
    """Keeps only a share of a file's bytes, from its beginning."""
    data = path.read_bytes()
    path.write_bytes(data[: round(share * len(data))])
    return path


def _picture_stream(container: av.container.OutputContainer, fps: int, size: tuple[int, int], rotation: int):
    stream = container.add_stream("libx264", rate=fps, options={"preset": "veryfast", "crf": "20", "bf": "2"})
    stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
    stream.codec_context.gop_size, stream.codec_context.time_base = fps, Fraction(1, TICKS)
    if rotation:
        stream.set_display_rotation(rotation)
    return stream


def _wave(seconds: float, sample_rate: int, channels: int) -> np.ndarray:
    """Sines of `tone(s)` in second s: float32 (channels, samples)."""
    clock = np.arange(round(seconds * sample_rate)) / sample_rate
    sines = 0.5 * np.sin(2 * np.pi * tone(np.floor(clock)) * clock)
    return np.repeat(sines[None].astype(np.float32), channels, axis=0)


CODECS = {  # name -> encoder, its options, pixel format
    "h264": ("libx264", {"preset": "veryfast", "bf": "3"}, "yuv420p"),
    "h264, open": ("libx264", {"preset": "veryfast", "bf": "3", "x264-params": "open-gop=1:b-pyramid=2"}, "yuv420p"),
    "h264, intra refresh": ("libx264", {"preset": "veryfast", "x264-params": "intra-refresh=1"}, "yuv420p"),
    "hevc, open": ("libx265", {"preset": "ultrafast", "x265-params": "log-level=none:bframes=3"}, "yuv420p"),
    "av1": ("libsvtav1", {"preset": "10", "svtav1-params": "pred-struct=2:hierarchical-levels=3"}, "yuv420p"),
    "vp8": ("libvpx", {"deadline": "realtime", "auto-alt-ref": "1", "lag-in-frames": "8"}, "yuv420p"),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "8"}, "yuv420p"),
    "mpeg4": ("mpeg4", {}, "yuv420p"),
    "mpeg4, B": ("mpeg4", {"bf": "2"}, "yuv420p"),
    "mpeg2": ("mpeg2video", {"bf": "2"}, "yuv420p"),
    "mpeg1": ("mpeg1video", {"bf": "2"}, "yuv420p"),
    "prores": ("prores", {}, "yuv422p10le"),
    "ffv1": ("ffv1", {}, "yuv420p"),
    "mjpeg": ("mjpeg", {}, "yuvj420p"),
    "wmv2": ("wmv2", {}, "yuv420p"),
}


def write_coded(
    path: Path, codec: str, container: str, gop: int, frames: int = 40, fps: int = 25, sound: str | None = None,
    sound_at: float = 0.0, pictures_at: float = 0.0,
) -> Path:  # fmt: skip
    """Writes picture i at i / fps seconds in any codec and container, with a key frame every `gop` pictures.

    Args:
        path: the file.
        codec: of `CODECS`.
        container: FFmpeg's name of the format.
        gop, frames, fps: of the pictures.
        sound: an encoder of sound, 44.1 kHz, one channel; none without.
        sound_at, pictures_at: seconds at which each begins.
    Returns:
        The path.
    """
    encoder, options, layout = CODECS[codec]
    size, rate, sent = (176, 144), 44_100, 0
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(encoder, rate=fps, options=dict(options))
        stream.width, stream.height, stream.pix_fmt = *size, layout
        stream.codec_context.gop_size, stream.bit_rate = gop, 800_000
        track = file.add_stream(sound, rate=rate, layout="mono") if sound else None
        sines = (_wave(frames / fps, rate, 1) * 32767).astype(np.int16)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number, size), format="rgb24")
            frame.pts, frame.time_base = number + round(pictures_at * fps), Fraction(1, fps)
            file.mux(stream.encode(frame))
            while track is not None and sent < min((number + 1) / fps * rate, sines.shape[1]):
                chunk = av.AudioFrame.from_ndarray(sines[:, sent : sent + 1024].copy(), "s16", "mono")
                chunk.sample_rate, chunk.time_base = rate, Fraction(1, rate)
                chunk.pts = sent + round(sound_at * rate)
                file.mux(track.encode(chunk))
                sent += chunk.samples
        for each in filter(None, (stream, track)):
            file.mux(each.encode(None))
    return path


def whole_file(path: Path) -> tuple[list[tuple[float, int]], float, np.ndarray]:
    """Decode a file from its first byte to its last.

    Returns:
        Time and number of each picture, the start of the sound in seconds (NaN if there is none), and its samples.
    """
    with av.open(str(path)) as file:
        origin = max(0.0, (file.start_time or 0) / av.time_base)
        numbers = [
            (float(frame.pts * frame.time_base) - origin, number_of(frame.to_ndarray(format="rgb24")))
            for frame in file.decode(video=0)
            if frame.pts is not None
        ]
    with av.open(str(path)) as file:
        sound = list(file.decode(audio=0)) if file.streams.audio else []
    if not sound:
        return numbers, float("nan"), np.zeros(0, np.float32)
    samples = np.concatenate([np.atleast_2d(frame.to_ndarray()) for frame in sound], axis=1)[0]
    scale = 32768 if samples.dtype == np.int16 else 1
    return numbers, sound[0].time - origin, (samples / scale).astype(np.float32)


def probe(path: str | Path) -> Probe:
    """What the header of a file declares."""
    with open_clip(path) as clip:
        return clip.probe


def read_window(path: str | Path, *window: float | None) -> Window:
    """One window of a file, see `Clip.window`."""
    with open_clip(path) as clip:
        return clip.window(*window)
