"""Decoding of windows, on real files: the right pictures, the right sound, and one exception for all that is broken."""

import ctypes
import gc
import pickle
import re
import struct
import sys
from bisect import bisect_right
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from av.video.reformatter import VideoReformatter

from recipes.data.decode import BrokenClip, Clip, _rgb, open_clip
from tests.recipes import media
from tests.recipes.media import probe, read_window

RATE = 16_000


def numbers(path: Path, start: float, frames: int = 4, fps: float = 10.0) -> list[int]:
    window = read_window(path, start, frames, fps, RATE, RATE // 10, None)
    return [media.number_of(picture) for picture in window.video]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return media.write(tmp_path_factory.mktemp("plain") / "clip.mp4")


def test_probe_reads_the_header(plain: Path) -> None:
    found = probe(plain)
    assert (found.has_video, found.has_audio, found.width, found.height, found.fps) == (True, True, 96, 64, 10.0)
    assert found.duration == pytest.approx(4.0, abs=0.1)


def test_every_start_gives_the_pictures_on_screen(plain: Path) -> None:
    """Key frames lie a second apart and B-frames between them: each start is another distance from both."""
    for tick in range(79):  # twice a picture: on its time stamp, and between two
        expected = [min(39, tick // 2 + i) for i in range(4)]
        assert numbers(plain, tick * 0.05) == expected, f"window at {tick * 0.05:.2f} s"


def test_pictures_are_sampled_at_the_rate_asked_for(plain: Path) -> None:
    assert numbers(plain, 0.5, frames=5, fps=2.5) == [5, 9, 13, 17, 21]
    assert numbers(plain, 0.5, frames=5, fps=20.0) == [5, 5, 6, 6, 7]


@pytest.mark.parametrize("start", [0.2, 1.0, 1.3, 2.5, 3.1])
def test_sound_is_that_of_the_window(plain: Path, start: float) -> None:
    audio = read_window(plain, start, 1, 10.0, RATE, RATE // 2, None).audio
    assert audio is not None and audio.dtype == np.float32 and audio.shape == (RATE // 2,)
    assert media.frequency_of(audio, RATE) == pytest.approx(media.tone(int(start)), abs=5)


def test_sound_begins_within_milliseconds_of_the_window(tmp_path: Path) -> None:
    """The sound jumps from 400 to 500 Hz at 2 s: the phase of a window across it says where the window begins."""
    path = media.write(tmp_path / "clip.mp4")
    audio = read_window(path, 1.9, 1, 10.0, RATE, RATE // 5, None).audio
    clock = 1.9 + np.arange(audio.size) / RATE
    shifts = np.arange(-40, 41)  # samples, 2.5 ms each way
    match = [
        np.dot(audio, np.sin(2 * np.pi * media.tone(np.floor(clock + s / RATE)) * (clock + s / RATE))) for s in shifts
    ]
    assert abs(shifts[int(np.argmax(match))]) <= 2


def test_sound_after_a_seek_is_that_of_the_whole_file(plain: Path) -> None:
    """A codec needs the sound before a packet to decode it: the window must not begin with what a seek garbles."""
    whole = read_window(plain, 0.0, 1, 10.0, RATE, 4 * RATE, None).audio
    for first in range(8_192, 3 * RATE, 1_024):  # a packet has 1024 samples
        audio = read_window(plain, first / RATE, 1, 10.0, RATE, 2_048, None).audio
        np.testing.assert_allclose(audio, whole[first : first + 2_048], atol=1e-4, err_msg=f"at sample {first}")


def test_stereo_at_44_khz_becomes_mono_at_the_rate_asked_for(tmp_path: Path) -> None:
    path = media.write(tmp_path / "clip.mp4", sample_rate=44_100, channels=2)
    audio = read_window(path, 2.1, 1, 10.0, RATE, RATE // 2, None).audio
    assert media.frequency_of(audio, RATE) == pytest.approx(media.tone(2), abs=5)
    assert np.abs(audio).max() == pytest.approx(0.5, abs=0.05)  # two equal channels: their mean, not their sum


def test_after_the_end_the_last_picture_stays_and_the_sound_is_zero(plain: Path) -> None:
    window = read_window(plain, 3.5, 10, 10.0, RATE, RATE, None)
    assert [media.number_of(picture) for picture in window.video] == [35, 36, 37, 38, 39, 39, 39, 39, 39, 39]
    assert np.abs(window.audio[: RATE // 2]).max() > 0.3
    assert not window.audio[int(0.6 * RATE) :].any()
    assert numbers(plain, 9.0) == [39] * 4


def test_clip_shorter_than_the_window(tmp_path: Path) -> None:
    path = media.write(tmp_path / "clip.mp4", seconds=0.3)
    window = read_window(path, 0.0, 8, 10.0, RATE, RATE, None)
    assert [media.number_of(picture) for picture in window.video] == [0, 1, 2, 2, 2, 2, 2, 2]
    assert window.audio.shape == (RATE,) and window.audio[: RATE // 5].any() and not window.audio[RATE // 2 :].any()


def test_variable_frame_rate_goes_by_time_stamps(tmp_path: Path) -> None:
    times = [0.0, 0.033, 0.5, 0.55, 1.9, 2.0, 2.01, 3.1]
    path = media.write(tmp_path / "clip.mp4", times=times)
    for time in [0.0, 0.02, 0.04, 0.49, 0.51, 0.56, 1.8, 1.95, 2.005, 2.02, 3.0, 3.2, 3.9]:
        assert numbers(path, time, frames=1) == [sum(t <= time for t in times) - 1], f"at {time} s"


def test_clip_without_audio(tmp_path: Path) -> None:
    path = media.write(tmp_path / "clip.mp4", audio=False)
    assert not probe(path).has_audio
    window = read_window(path, 1.0, 4, 10.0, RATE, RATE, None)
    assert window.audio is None and window.video.shape == (4, 64, 96, 3)


@pytest.mark.parametrize("angle", [90, 180, -90])
def test_rotation_in_the_header_is_applied(tmp_path: Path, angle: int) -> None:
    path = media.write(tmp_path / "clip.mp4", seconds=1, rotation=angle)
    video = read_window(path, 0.3, 4, 10.0, RATE, RATE, None).video
    assert [media.number_of(np.rot90(picture, -angle // 90)) for picture in video] == [3, 4, 5, 6]


@pytest.mark.parametrize("short_side", [25, 37, 41, 63])
def test_pictures_of_odd_width_are_what_packed_colours_give(short_side: int) -> None:
    """They are made in another layout, because that is faster, of the same colours."""
    noise = np.random.default_rng(short_side).integers(0, 256, (72, 72, 3), np.uint8)
    frame = av.VideoFrame.from_ndarray(noise, "rgb24").reformat(format="yuv420p")
    packed = frame.reformat(short_side, short_side, "rgb24", interpolation="BILINEAR").to_ndarray()
    assert (_rgb(frame, short_side, VideoReformatter()) == packed).all()


def test_only_large_pictures_are_scaled(plain: Path) -> None:
    assert read_window(plain, 0.0, 2, 10.0, RATE, RATE, 32).video.shape == (2, 32, 48, 3)
    assert read_window(plain, 0.0, 2, 10.0, RATE, RATE, 64).video.shape == (2, 64, 96, 3)
    assert read_window(plain, 0.0, 2, 10.0, RATE, RATE, 200).video.shape == (2, 64, 96, 3)


def test_missing_empty_and_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("this is no video\n" * 100)
    for name, reason in [("none.mp4", "no such file"), ("empty.mp4", "empty"), ("text.mp4", "not a media file")]:
        with pytest.raises(BrokenClip, match=reason) as caught:
            read_window(tmp_path / name, 0.0, 4, 10.0, RATE, RATE, None)
        assert caught.value.path == str(tmp_path / name)


def test_file_without_pictures(tmp_path: Path) -> None:
    path = media.write(tmp_path / "clip.mp4", video=False)
    assert not probe(path).has_video
    with pytest.raises(BrokenClip, match="no video stream"):
        read_window(path, 0.0, 4, 10.0, RATE, RATE, None)


def test_truncated_before_its_header(tmp_path: Path) -> None:
    path = media.truncate(media.write(tmp_path / "clip.mp4"), 0.7)
    with pytest.raises(BrokenClip, match="truncated"):
        probe(path)


def test_truncated_behind_its_header(tmp_path: Path) -> None:
    """What is there is read; a window beyond it is an error and not a still picture."""
    path = media.truncate(media.write(tmp_path / "clip.mp4", seconds=8, header_first=True), 0.5)
    assert probe(path).duration == pytest.approx(8.0, abs=0.1)
    assert numbers(path, 1.0) == [10, 11, 12, 13]
    for start in (5.0, 7.5):
        with pytest.raises(BrokenClip, match=r"truncated: pictures end at 3\.\d s of 8\.0 s"):
            numbers(path, start)


def test_random_damage_is_never_another_exception(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole, path = media.write(tmp_path / "clip.mp4", seconds=2).read_bytes(), tmp_path / "damaged.mp4"
    broken = 0
    for _ in range(60):
        data = np.frombuffer(whole, np.uint8).copy()
        data[rng.integers(0, data.size, 20)] = rng.integers(0, 256, 20)
        path.write_bytes(data.tobytes())
        try:
            assert read_window(path, rng.uniform(0, 2), 4, 10.0, RATE, RATE, 32).video.shape[0] == 4
        except BrokenClip:
            broken += 1
    assert broken > 10  # the damage is real


def test_broken_clip_crosses_processes() -> None:
    error = pickle.loads(pickle.dumps(BrokenClip("a.mp4", "the file is empty")))
    assert (error.path, error.reason, str(error)) == ("a.mp4", "the file is empty", "a.mp4: the file is empty")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks the C library to give back what is free")
def test_reading_keeps_nothing(tmp_path: Path) -> None:
    """A loader's worker reads millions of clips: what one leaves behind adds up."""
    path, process = media.write(tmp_path / "c.mp4", seconds=2.0), psutil.Process()

    def kept_after(times: int) -> int:
        for k in range(times):
            with open_clip(path) as clip:
                clip.window(0.01 * (k % 50), 4, 5.0, 8000, 8000, 32)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        return process.memory_full_info().uss

    before = kept_after(1000)  # caches are full
    assert (kept_after(3000) - before) / 3000 < 100  # bytes; a packet that is not freed is 300


# ------------------------------------------------------------------------------- against a decoder of the whole file
CONTAINERS = {
    "h264": ["mp4", "matroska", "mpegts", "flv", "avi", "mpeg", "asf"],
    "h264, open": ["mp4", "matroska", "mpegts"],
    "h264, intra refresh": ["mp4", "matroska", "flv"],
    "hevc, open": ["mp4", "matroska", "mpegts"],
    "av1": ["mp4", "webm"],
    "vp8": ["webm", "matroska"],
    "vp9": ["webm", "mp4"],
    "mpeg4": ["mp4", "avi", "mpegts", "mpeg"],
    "mpeg4, B": ["mp4", "avi", "matroska"],
    "mpeg2": ["mpeg", "mpegts", "matroska", "asf"],
    "mpeg1": ["mpeg", "mpegts"],
    "prores": ["mov"],
    "ffv1": ["matroska", "avi"],
    "mjpeg": ["avi", "mov"],
    "wmv2": ["asf"],
}
UNREADABLE = "go backwards|no time stamps"  # stamps in the order of decoding, or hardly any


@pytest.mark.parametrize(("codec", "container"), [(c, name) for c, names in CONTAINERS.items() for name in names])
def test_every_window_shows_what_a_decoder_of_the_whole_file_shows(codec: str, container: str, tmp_path: Path) -> None:
    for gop in (5, 12, 1000):
        path = media.write_coded(tmp_path / f"{gop}.{container}", codec, container, gop)
        shown, _, _ = media.whole_file(path)
        if container == "mpeg":  # stamps few pictures, some of them wrong
            shown = [(shown[0][0] + number / 25, number) for number in range(40)]
        times = [time for time, _ in shown]
        read = 0
        for start in np.arange(0, 1.6, 0.12):
            ticks = start + np.arange(3) / 12.5
            try:
                with open_clip(path) as clip:
                    pictures = clip.pictures(ticks, None)
            except BrokenClip as broken:
                assert re.search(UNREADABLE, broken.reason), broken
                continue
            read += 1
            expected = [shown[max(0, bisect_right(times, tick + 5e-4) - 1)][1] for tick in ticks]
            assert [media.number_of(p) for p in pictures] == expected, (gop, start)
        assert read == 14 or (codec, container) in {
            ("h264", "avi"), ("h264", "mpeg"), ("h264", "asf"), ("mpeg2", "asf"),
        }  # fmt: skip


@pytest.mark.parametrize(
    ("codec", "container", "sound", "tolerance"),
    [
        ("mpeg2", "mpeg", "mp2", 1e-4),
        ("mpeg2", "mpegts", "mp2", 1e-4),
        ("h264", "mp4", "pcm_s16le", 1e-4),
        ("mpeg4", "avi", "mp2", 1e-4),
    ],
)
@pytest.mark.parametrize(("sound_at", "pictures_at"), [(0.0, 0.0), (0.0, 0.8), (0.8, 0.0)])
def test_sound_and_pictures_of_any_container_and_start(
    codec: str, container: str, sound: str, tolerance: float, sound_at: float, pictures_at: float, tmp_path: Path
) -> None:
    """Also where the one begins after the other: before its first picture a video shows that one."""
    if container == "mpeg" and pictures_at:
        pytest.skip("guessed stamps go backwards there, which is an error")
    path = tmp_path / f"clip.{container}"
    media.write_coded(path, codec, "mov" if container == "mp4" else container, 12, 60, 25, sound, sound_at, pictures_at)
    shown, begin, heard = media.whole_file(path)
    times = [time for time, _ in shown]
    for start in np.arange(0, 2.2, 0.21):
        with open_clip(path) as clip:
            window = clip.window(start, 2, 12.5, 44_100, 4410, None)
        expected = [shown[max(0, bisect_right(times, tick + 5e-4) - 1)][1] for tick in (start, start + 0.08)]
        assert [media.number_of(p) for p in window.video] == expected
        first = round((start - begin) * 44_100)
        part, whole = heard[max(0, first) : max(0, first + 4410)], np.zeros(4410, np.float32)
        whole[max(0, -first) :][: part.size] = part
        sound_of_window = np.zeros(4410) if window.audio is None else window.audio
        assert np.abs(sound_of_window - whole).max() <= tolerance


def test_sound_is_whole_from_the_first_sample_on(tmp_path: Path) -> None:
    """AAC begins with a frame before time zero, without which its first is silent."""
    path = media.write(tmp_path / "clip.mp4", channels=1)
    _, begin, heard = media.whole_file(path)
    with open_clip(path) as clip:
        sound = clip.sound(0.0, 16_000, 2000)
    assert begin == 0 and np.abs(sound - heard[:2000]).max() < 1e-3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_sound_that_is_no_number_is_a_broken_clip(value: float, tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    samples = np.zeros(16_000, np.float32)
    samples[3000] = value
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 1, 16_000, 64_000, 4, 32)  # 3: floating point
    data = struct.pack("<4sI", b"data", samples.nbytes) + samples.tobytes()
    path.write_bytes(struct.pack("<4sI4s", b"RIFF", 4 + len(form) + len(data), b"WAVE") + form + data)
    with open_clip(path) as clip:
        assert clip.sound(0.5, 16_000, 1600) is not None  # the damage is elsewhere
    with pytest.raises(BrokenClip, match="not finite"), open_clip(path) as clip:
        clip.sound(0.1, 16_000, 1600)


def test_more_channels_than_are_read(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("pcm_f32le", rate=16_000, layout="hexadecagonal")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16 * 16_000), np.float32), "flt", "hexadecagonal")
        frame.sample_rate = 16_000
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    with pytest.raises(BrokenClip, match="16 channels"), open_clip(path) as clip:
        clip.sound(0.0, 16_000, 1600)


@pytest.mark.parametrize("error", [IndexError, RuntimeError, OverflowError, UnicodeDecodeError, MemoryError, KeyError])
def test_whatever_a_decoder_raises_is_a_broken_clip(error: type[Exception], plain: Path) -> None:
    mistake = error("utf8", b"x", 0, 1, "no") if error is UnicodeDecodeError else error("of the decoder")
    with pytest.raises(BrokenClip, match=r"header|decoded|corrupt"), open_clip(plain):
        raise mistake


def test_a_sample_rate_that_nobody_has_is_refused(tmp_path: Path) -> None:
    path, samples = tmp_path / "clip.wav", np.zeros(2_000_000, np.int16)
    media.write_wav(path, samples, 2_000_000)
    with pytest.raises(BrokenClip, match="2000000 Hz, more than 768000"), open_clip(path) as clip:
        clip.sound(0.0, 16_000, 1600)


def test_packets_without_stamps_before_time_zero_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that begins before zero is begun there, once, and no place is sought for ever."""
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as file:
        stream = file.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuvj420p"
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(media.picture(number, (96, 64)), format="rgb24")
            frame.pts, frame.time_base = number - 5, Fraction(1, 10)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    whole = Clip._packets

    def unstamped(self, stream, target, last):
        packets = whole(self, stream, target, last)
        packets[-1].pts = None
        return packets

    monkeypatch.setattr(Clip, "_packets", unstamped)
    with open_clip(path) as clip:
        assert (clip.video.start_time or 0) < 0
        assert len(clip.pictures(np.array([0.5, 0.9]), None)) == 2
