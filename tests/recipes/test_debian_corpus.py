"""The corpus of Debian packages: built from a small tree in the packages' own formats, without apt or a network."""

import io
import json
import struct
import sys
import zlib
from fractions import Fraction
from itertools import count
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from recipes.data.corpus import debian as debian_corpus
from recipes.data.corpus import packages
from recipes.data.corpus.debian import FPS, SAMPLE_RATE, SIZE, _fit, build
from recipes.data.corpus.packages import PackageError, _concept, _read_rcc
from recipes.data.index import load_index
from tests.recipes.media import frequency_of, read_window

WORDS = ("cow", "apple", "bear", "drum", "train", "violin")
SVG = b"""<?xml version="1.0"?>
<svg xmlns="http://www.w3.org/2000/svg" width="40" height="20"><rect width="40" height="20"/></svg>"""
RED = (220, 20, 20)


def png(colour: tuple[int, int, int] = RED, size: tuple[int, int] = (60, 40)) -> bytes:
    Image.new("RGB", size, colour).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def sound(seconds: float, hertz: float = 440.0, container: str = "ogg", codec: str = "flac") -> bytes:
    """A sine at 44.1 kHz between half seconds of silence, as a file."""
    file, rate = io.BytesIO(), 44_100
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    wave = np.pad(wave, rate // 2)
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.int16(wave * 32767)[None], "s16", "mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def rcc(files: dict[str, bytes], version: int = 2) -> bytes:
    """A Qt binary resource: header, nodes, names, contents; every second file is compressed."""
    folder: dict = {}
    for path, content in files.items():
        *parents, name = path.strip("/").split("/")
        place = folder
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = content
    nodes, names, contents, queue, number = b"", b"", b"", [("", folder)], count()
    placed = 1
    while queue:  # breadth first: the children of a folder stand together
        name, item = queue.pop(0)
        nodes += struct.pack(">I", len(names))
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        if isinstance(item, dict):
            nodes += struct.pack(">HII", 2, len(item), placed)
            placed += len(item)
            queue += item.items()
        else:
            compressed = next(number) % 2
            nodes += struct.pack(">HHHI", compressed, 0, 0, len(contents))
            item = struct.pack(">I", len(item)) + zlib.compress(item) if compressed else item
            contents += struct.pack(">I", len(item)) + item
        nodes += bytes(8) if version > 1 else b""
    header = 20 if version < 3 else 24
    places = header, header + len(nodes) + len(names), header + len(nodes)
    return b"qres" + struct.pack(">4I", version, *places) + bytes(header - 20) + nodes + names + contents


def board(activity: str, *items: dict[str, str]) -> bytes:
    """A QML table of items, written as the package writes it."""
    folder = f"qrc:/{activity}/"
    wrap = {"text": 'qsTr("{}")', "title": 'qsTr("{}")', "audio": f'getAudioFilePath("{folder}{{}}.$CA")'}
    lines = [
        ",\n".join(f'"{key}": ' + wrap.get(key, f'"{folder}{{}}"').format(value) for key, value in item.items())
        for item in items
    ]
    return (
        "QtObject {\nproperty var tab: [" + ",".join("{\n" + line + ',\n"x": 0.1\n}' for line in lines) + "]\n}"
    ).encode()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both packages, unpacked: 6 noises, 2 spoken words, a broken picture, and 2 noises out of three resources."""
    root = tmp_path_factory.mktemp("root")
    abcs = root / packages.QABCS
    files = {f"all/pics/misc/{word}.png": png() for word in WORDS}
    files |= {f"all/noises/{word}.ogg": sound(1 + 0.8 * number) for number, word in enumerate(WORDS)}
    files["all/noises/apple.ogg"] = sound(0.5, container="wav", codec="pcm_s16le")  # what is in a file decides
    files |= {"all/pics/animals/broken.png": png()[:60], "all/noises/broken.ogg": sound(1)}
    files |= {"en/sounds/words/cow.ogg": sound(0.6), "en_gb/sounds/words/bear.ogg": sound(0.6)}
    files["all/pics/misc/no_sound.png"] = png()
    files["en/abc1.properties"] = b"language:English (US)\nanimals:c=old cow==cow\nanimals:b=bear==bear=bear\n"
    files["en/abc2.properties"] = b"author:Name\n#c\nanimals:c=brown cow==cow=cow\n"
    for name, content in files.items():
        (abcs / name).parent.mkdir(parents=True, exist_ok=True)
        (abcs / name).write_bytes(content)
    cow = {"image": "cow.svg", "title": "Cow", "text": "The cow goes 'moo'.", "audio": "cow", "image2": "cow.png"}
    lyre = {"image": "lyre.svg", "text": "Find the lyre", "audio": "lyre"}
    deaf = {"image": "lyre.svg", "text": "Find the silence", "audio": "silence"}
    resources = {
        "explore_farm_animals": {"board1.qml": board("explore_farm_animals", cow), "cow.png": png(), "cow.svg": SVG},
        "explore_world_music": {"board1.qml": board("explore_world_music")},
        "instruments": {"instruments.js": board("instruments", lyre, deaf, lyre), "lyre.svg": SVG},
    }
    resources["explore_farm_animals"]["cow.ogg"] = resources["instruments"]["lyre.ogg"] = sound(2.5)
    (root / packages.GCOMPRIS).mkdir(parents=True)
    for version, (name, members) in enumerate(resources.items(), 1):
        data = rcc({f"/{name}/{member}": content for member, content in members.items()}, version)
        (root / packages.GCOMPRIS / f"{name}.rcc").write_bytes(data)
    return root


@pytest.fixture(scope="module")
def corpus(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cairosvg", None)  # as if it were not installed
        return build(tmp_path_factory.mktemp("corpora") / "debian", tree, workers=1)


def rows(folder: Path) -> dict[str, dict]:
    lines = (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["id"]: row for row in map(json.loads, lines)}


def test_every_sound_that_has_a_picture_becomes_a_clip(corpus: Path) -> None:
    found = rows(corpus)
    expected = {f"qabcs-misc-{word}-noise" for word in WORDS}
    expected |= {"qabcs-misc-cow-speech-en", "qabcs-misc-bear-speech-en_gb", "gcompris-explore_farm_animals-cow-noise"}
    assert set(found) == expected
    assert {file.name for file in corpus.iterdir()} == {"manifest.jsonl", "videos"}
    assert {f"videos/{file.name}" for file in (corpus / "videos").iterdir()} == {row["video"] for row in found.values()}


def test_texts_are_the_packages_own(corpus: Path) -> None:
    found = rows(corpus)
    assert found["qabcs-misc-cow-noise"]["text"] == "brown cow"  # the second table wins
    assert found["qabcs-misc-train-noise"]["text"] == "train"  # not in a table: the name of the picture
    row = found["gcompris-explore_farm_animals-cow-noise"]
    assert row.pop("license").startswith("GPL-3+")
    assert row == {
        "id": "gcompris-explore_farm_animals-cow-noise",
        "video": "videos/gcompris-explore_farm_animals-cow-noise.mp4",
        "text": "The cow goes 'moo'.",
        "split": row["split"],
        "concept": "cow",
        "category": "animals",
        "label": "animals",
        "kind": "noise",
        "source": "gcompris",
        "seconds": 2.6,  # 2.5 and what is kept around the sound
    }


def test_clips_are_h264_and_aac_of_two_to_four_seconds(corpus: Path) -> None:
    for row in rows(corpus).values():
        with av.open(str(corpus / row["video"])) as container:
            video, audio = container.streams.video[0], container.streams.audio[0]
            assert (video.codec.canonical_name, audio.codec.canonical_name) == ("h264", "aac")
            assert (video.width, video.height, video.average_rate) == (SIZE, SIZE, FPS)
            assert (audio.rate, audio.layout.name) == (SAMPLE_RATE, "mono")
            assert 2.0 <= row["seconds"] <= 4.0
            assert container.duration / av.time_base == pytest.approx(row["seconds"], abs=0.1)
            assert sum(1 for _ in container.decode(video=0)) == round(row["seconds"] * FPS)
    lengths = {row["seconds"] for row in rows(corpus).values()}
    assert {2.0, 4.0} <= lengths and len(lengths) > 3  # the silence around a sound does not count


def test_a_clip_shows_the_picture_moving_and_plays_the_sound(corpus: Path) -> None:
    path = corpus / rows(corpus)["qabcs-misc-cow-noise"]["video"]
    clip = read_window(path, 0.0, 20, FPS, SAMPLE_RATE, 2 * SAMPLE_RATE, None)
    middle = clip.video[:, SIZE // 2 - 4 : SIZE // 2 + 4, SIZE // 2 - 4 : SIZE // 2 + 4].astype(float)
    assert np.abs(middle.mean((0, 1, 2)) - RED).max() < 40
    assert np.abs(clip.video[0].astype(float) - clip.video[-1]).mean() > 3
    assert clip.audio is not None
    assert frequency_of(clip.audio, SAMPLE_RATE) == pytest.approx(440, abs=3)
    assert np.abs(clip.audio).max() == pytest.approx(0.8, abs=0.15)


def test_index_reads_both_splits_and_no_concept_is_in_both(corpus: Path) -> None:
    found = rows(corpus).values()
    for split in ("train", "test"):
        index = load_index(corpus / "manifest.jsonl", split)
        assert set(index["id"]) == {row["id"] for row in found if row["split"] == split} != set()
    splits: dict[str, set[str]] = {}
    for row in found:
        splits.setdefault(row["concept"], set()).add(row["split"])
    assert all(len(names) == 1 for names in splits.values())
    assert len(splits["bear"]) == 1 and sum(row["concept"] == "bear" for row in found) == 2


@pytest.mark.parametrize("text", ["cymbal", "The cymbals", "a Cymbal "])
def test_article_and_plural_do_not_make_another_concept(text: str) -> None:
    assert _concept(text) == "cymbal"


def test_same_tree_gives_the_same_files(corpus: Path, tree: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "cairosvg", None)
    again = build(tmp_path / "again", tree, workers=1)
    for file in ("manifest.jsonl", *(row["video"] for row in rows(corpus).values())):
        assert (again / file).read_bytes() == (corpus / file).read_bytes()


def test_what_is_broken_is_skipped_and_said(tree: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "cairosvg", None)
    build(tmp_path / "out", tree, workers=1)
    said = capsys.readouterr().out
    assert "skipped 1: the picture cannot be read" in said and "qabcs-animals-broken-noise" in said
    assert "skipped 1: drawings (SVG) need cairosvg" in said and "gcompris-instruments-lyre-noise" in said
    assert "9 clips" in said and "2 skipped" in said


@pytest.mark.parametrize(("data", "reason"), [(b"RIFF, not really", "cannot be read"), (None, "silent")])
def test_a_sound_that_cannot_be_used_says_why(data: bytes | None, reason: str) -> None:
    with pytest.raises(debian_corpus.BrokenMedia, match=reason):
        debian_corpus._sound(data or sound(1.0, hertz=0.0))


def test_drawings_become_clips_with_cairosvg(tree: Path, tmp_path: Path) -> None:
    pytest.importorskip("cairosvg", exc_type=(ImportError, OSError))  # OSError: without the cairo library itself
    row = rows(build(tmp_path / "out", tree, workers=2))["gcompris-instruments-lyre-noise"]
    assert (row["text"], row["concept"], row["category"]) == ("the lyre", "lyre", "instrument")


def test_lengths_of_sounds_are_fitted() -> None:
    rng = np.random.default_rng(0)
    quiet_then_loud = np.r_[np.full(50, 0.1), np.full(30, 0.8), np.full(20, 0.1)].astype(np.float32)
    assert _fit(quiet_then_loud, 30, True, rng).min() > 0.7
    word = np.full(10, 0.5, np.float32)
    once = _fit(word, 40, False, rng)
    assert len(once) == 40 and np.count_nonzero(once) == 10
    gap = SAMPLE_RATE // 7
    assert np.count_nonzero(_fit(word, 3 * (10 + gap), True, rng)) == 30


@pytest.mark.parametrize("version", [1, 2, 3])
def test_resource_files_are_read(version: int, tmp_path: Path) -> None:
    files = {"/a/b/été.txt": b"one", "/a/two.txt": b"two" * 100, "/three.txt": b"", "/a/b/four.txt": b"4" * 1000}
    (tmp_path / "x.rcc").write_bytes(rcc(files, version))
    assert _read_rcc(tmp_path / "x.rcc") == files


@pytest.mark.parametrize("data", [b"", b"not a resource file at all", rcc({"/a": b"a"})[:50], rcc({"/a": b"a"}, 9)])
def test_a_file_that_is_no_resource_is_named(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.rcc").write_bytes(data)
    with pytest.raises(PackageError, match=r"x\.rcc: expected a Qt resource file"):
        _read_rcc(tmp_path / "x.rcc")


def test_existing_folder_is_left_alone(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="exists already"):
        build(tmp_path, tree)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_a_build_that_dies_leaves_nothing(tree: Path, tmp_path: Path, monkeypatch) -> None:
    written = []

    def disk_full(path: Path, *_) -> None:
        assert path.parent.is_dir() and not (tmp_path / "out").exists()
        written.append(path)
        path.touch()
        if len(written) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(debian_corpus, "write_mp4", disk_full)
    with pytest.raises(OSError, match="No space left"):
        build(tmp_path / "out", tree, workers=1)
    assert len(written) == 3 and not list(tmp_path.iterdir())


def test_a_root_without_the_packages_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="has no usr/share/qabcs/abcs: root= must hold"):
        build(tmp_path / "out", tmp_path)
    assert not list(tmp_path.iterdir())


def command(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_without_apt_the_error_says_what_else_one_can_do(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PackageError, match=r"apt-get and dpkg not found.*root="):
        build(tmp_path / "out")


def test_a_failed_download_says_what_to_do(tmp_path: Path, monkeypatch, capsys) -> None:
    command(tmp_path / "apt-get", 'echo "E: Unable to locate package $3" >&2; exit 100')
    command(tmp_path / "dpkg", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert debian_corpus.main([f"out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    for part in ("run `apt-get update` first", "root=", "Unable to locate package qabcs-data"):
        assert part in error
    assert not (tmp_path / "out").exists()


def test_downloaded_packages_are_unpacked_and_removed(tree: Path, tmp_path: Path, monkeypatch) -> None:
    command(tmp_path / "apt-get", "pwd >> $LOG; touch qabcs-data_1_all.deb gcompris-qt-data_2_all.deb")
    command(tmp_path / "dpkg", "echo $2 >> $LOG; /bin/cp -r $TREE/usr .")
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.setenv("TREE", str(tree))
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert len(rows(build(tmp_path / "out", workers=1))) >= 9
    folder, *archives = (tmp_path / "log").read_text().splitlines()
    assert archives == ["gcompris-qt-data_2_all.deb", "qabcs-data_1_all.deb"]
    assert not Path(folder).exists()
