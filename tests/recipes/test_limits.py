"""Files that ask for too much, or for other files: refused with a reason, whatever they are called."""

import os
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from recipes.data import limits, vocabulary
from recipes.data.decode import BrokenClip, Window
from recipes.files import jsonl
from recipes.restore import restore
from recipes.scoring.table import facts_of
from recipes.training import checkpoint as checkpoints
from tests.recipes import media
from tests.recipes.media import read_window


def window(path: Path, start: float = 0.5) -> Window:
    return read_window(path, start, 4, 10.0, 16_000, 1600, None)


def refused(path: Path, start: float = 0.5) -> str:
    """Why a file is refused."""
    with pytest.raises(BrokenClip) as broken:
        window(path, start)
    return broken.value.reason


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return media.write(tmp_path_factory.mktemp("plain") / "clip.mp4", seconds=2.0)


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv", ".webm", ".avi", ".ts", ".flv", ".mpg", ".wmv"])
def test_the_usual_containers_are_read(ending: str, tmp_path: Path) -> None:
    with av.open(str(tmp_path / f"clip{ending}"), "w") as container:
        codecs = {".webm": "libvpx-vp9", ".flv": "flv", ".mpg": "mpeg2video", ".wmv": "wmv2"}
        stream = container.add_stream(codecs.get(ending, "mpeg4"), rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(50):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(media.picture(number, (64, 48)), format="rgb24")))
        container.mux(stream.encode(None))
    assert window(tmp_path / f"clip{ending}").video.shape == (4, 48, 64, 3)


def test_a_list_of_files_does_not_read_them(plain: Path) -> None:
    listed = plain.with_name("list.mp4")
    listed.write_text(f"ffconcat version 1.0\nfile {plain.name}\n")
    with av.open(str(listed)) as container:  # what it would do
        assert (next(container.decode(video=0)).to_ndarray(format="rgb24") > 200).sum() == 0
    assert refused(listed).startswith("not one of the formats that are read: mov,mp4")


@pytest.mark.parametrize("target", ["{name}", "http://127.0.0.1:9/clip.ts"])
def test_a_playlist_is_refused(plain: Path, target: str) -> None:
    playlist = plain.with_name("playlist.mp4")
    lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:2", "#EXTINF:2,", target.format(name=plain.name), "#EXT-X-ENDLIST"]
    playlist.write_text("\n".join(lines))
    assert "not a media file" in refused(playlist)
    playlist = playlist.rename(playlist.with_suffix(".m3u8"))  # by which FFmpeg knows it
    assert refused(playlist).startswith("not one of the formats")


def test_an_address_is_no_file() -> None:
    assert refused(Path("http://127.0.0.1:9/clip.mp4")) == "there is no such file"


def test_pictures_that_are_too_large(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(limits, "PIXELS", 96 * 64 - 1)
        assert refused(plain) == "its pictures of 96x64 have more than 6143 pixels or 8192 on a side"
    monkeypatch.setattr(limits, "SIDE", 95)
    assert "more than 16777216 pixels or 95 on a side" in refused(plain)


def test_pictures_that_grow_after_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large, joined = (tmp_path / f"{name}.ts" for name in ("small", "large", "joined"))
    media.write(small, size=(64, 64), seconds=2, audio=False)
    media.write(large, size=(256, 256), seconds=2, audio=False)
    joined.write_bytes(small.read_bytes() + large.read_bytes())
    with av.open(str(joined)) as container:
        sizes = [(frame.width, frame.height) for frame in container.decode(video=0)]
    assert {(64, 64), (256, 256)} == set(sizes)
    monkeypatch.setattr(limits, "PIXELS", 100 * 100)
    assert window(small).video.shape == (4, 64, 64, 3)
    with pytest.raises(BrokenClip):
        read_window(joined, 0.0, 40, 10.0, 16_000, 1600, None)


def test_too_many_streams(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STREAMS", 1)
    assert refused(plain) == "it has 2 streams, more than 1"


def test_a_duration_of_days(tmp_path: Path) -> None:
    """The clock of its pictures is said to tick once a second, and the list that cuts them is gone."""
    path = media.write(tmp_path / "clip.mp4", seconds=6.0, audio=False)
    data = bytearray(path.read_bytes())
    clock = data.index(b"mdhd") + 16
    data[clock : clock + 4] = (1).to_bytes(4, "big")
    path.write_bytes(data.replace(b"elst", b"free"))
    assert refused(path) == "declares a duration of 96000 s, more than 86400 s"


def test_a_window_of_too_many_bytes(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(limits, "BYTES", 100)
        assert "more than 100 bytes or 100000 packets" in refused(plain)
    monkeypatch.setattr(limits, "PACKETS", 3)
    assert "bytes or 3 packets" in refused(plain)


def test_a_window_of_too_much_sound(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SAMPLES", 1000)
    assert refused(plain) == "one window has more than 1000 samples of sound"
    monkeypatch.setattr(limits, "SAMPLES", 10_000)
    assert np.abs(window(plain).audio).max() > 0.3


def test_pipes_and_devices_are_not_waited_for(tmp_path: Path, checkpoint: Path) -> None:
    """Whatever reads them: word vectors, tables, lists, checkpoints."""
    os.mkfifo(tmp_path / "pipe")
    words = vocabulary.build(["word"])
    for path, kind in ((tmp_path / "pipe", "pipe"), (Path("/dev/zero"), "device"), (tmp_path, "folder")):
        with pytest.raises(OSError, match=f"a {kind}, not a regular file"):
            vocabulary.load_vectors(path, words)
        with pytest.raises(ValueError, match=f"a {kind}, not a regular file"):
            jsonl.read_rows(path)
        with pytest.raises(ValueError, match=f"a {kind}, not a regular file"):
            facts_of(path)
    run = shutil.copytree(checkpoint, tmp_path / "run")
    place = checkpoints.latest(run)
    (place / "state.json").unlink()
    os.mkfifo(place / "state.json")
    with pytest.raises(ValueError, match="a pipe, not a regular file"):
        checkpoints.load_facts(place)
    os.mkfifo(place / checkpoints.TENSORS / "more.safetensors")
    with pytest.raises(ValueError, match=r"state\.json|more\.safetensors"):
        restore(run)
