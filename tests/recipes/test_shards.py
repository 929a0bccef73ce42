"""Tar shards: found by their headers, read where they are, here or behind a URL; a broken one costs only itself."""

import io
import json
import os
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from recipes.config import AugmentConfig, ClipFormat
from recipes.data import identity, storage
from recipes.data.clips import TrainClips, collate
from recipes.data.decode import BrokenClip, open_clip
from recipes.data.index import load_index
from recipes.data.loader import train_loader
from recipes.data.sampler import BatchSampler, Source
from recipes.data.vocabulary import build
from tests.recipes import media
from tests.recipes.ranged_server import serve

FMT = ClipFormat(frames=4, fps=5, size=32, sample_rate=4000, audio_seconds=0.64, words=4)


def tar(path: Path, *files: tuple[str, bytes], mode: str = "w") -> Path:
    """Writes a shard as WebDataset's own writer does: the files one after another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as shard:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))
    return path


def about(**fields) -> bytes:
    return json.dumps(fields).encode()


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> bytes:
    return media.write(tmp_path_factory.mktemp("video") / "v.mp4", seconds=2.0, size=(64, 48)).read_bytes()


def captions(index) -> list[list[str]]:
    return [[narration["text"] for narration in row["narrations"]] for row in index]


def test_rows_of_shards_in_every_common_form(tmp_path: Path, video: bytes) -> None:
    tar(
        tmp_path / "train-000.tar",
        ("./a.b/000.json", about(text="first", id="one", split="test")),
        ("./a.b/000.mp4", video),
        ("001.txt", "second clip".encode("cp1252")),
        ("001.seg.npy", b"123"),
        ("001.WebM", video),
        ("002.mp4", video),
        ("003.json", about(text="no video")),
        ("004.json", about(caption="a caption", start=0.5, end=1.5)),
        ("004.mp4", video),
        ("005.json", about(narrations=[{"start": 0, "end": 1, "text": "timed"}])),
        ("005.mkv", video),
    )
    tar(tmp_path / "val-000.tar", ("000.mp4", video))
    index = load_index(tmp_path)
    assert index["id"][:] == ["one", *(f"train-000/{key}" for key in ("001", "002", "004", "005")), "val-000/000"]
    assert captions(index) == [["first"], ["second clip"], [], ["a caption"], ["timed"], []]
    assert index["split"][:] == ["test", *["train"] * 4, "validate"]
    assert (index[3]["start"], index[3]["end"]) == (0.5, 1.5)
    for locator in index["video"]:
        assert storage.open_bytes(locator).read() == video
    assert load_index(tmp_path / "val-000.tar")["video"][:] == index["video"][-1:]


def test_long_names_and_many_files_are_found(tmp_path: Path, video: bytes) -> None:
    """Names of more than 100 characters have headers of their own in a tar file."""
    tar(tmp_path / "s.tar", *((f"{'x' * 150}{i:03d}.mp4", video) for i in range(30)))
    rows = load_index(tmp_path).to_list()
    assert [row["id"][-3:] for row in rows] == [f"{i:03d}" for i in range(30)]
    assert all(storage.open_bytes(row["video"]).read() == video for row in rows)


def test_a_clip_in_a_shard_is_what_it_is_in_a_file(tmp_path: Path, video: bytes) -> None:
    (tmp_path / "v.mp4").write_bytes(video)
    tar(tmp_path / "s.tar", ("000.txt", b"x"), ("000.mp4", video), ("001.mp4", video))
    windows = []
    for locator in (str(tmp_path / "v.mp4"), *load_index(tmp_path / "s.tar")["video"]):
        with open_clip(locator) as clip:
            windows.append(clip.window(0.7, 5, 5.0, 8000, 8000, 32))
    for window in windows[1:]:
        assert np.array_equal(window.video, windows[0].video) and np.array_equal(window.audio, windows[0].audio)


def test_a_truncated_shard_loses_what_is_missing(tmp_path: Path, video: bytes) -> None:
    shard = tar(tmp_path / "s.tar", *((f"{i}.mp4", video) for i in range(4)))
    offset = int(load_index(shard)["video"][3].rpartition("#")[2].split(":")[0])
    with open(shard, "r+b") as file:
        file.truncate(offset + 100)
    with pytest.warns(UserWarning, match=r"s\.tar: truncated or not a tar file .*; the rest of it is left out"):
        assert load_index(shard)["id"][:] == ["s/0", "s/1", "s/2"]


HEADER, RECORD = tarfile.BLOCKSIZE, tarfile.RECORDSIZE


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header with any size, also a negative one, and the right checksum."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % HEADER)


@pytest.mark.parametrize(
    ("damage", "clips", "reason"),
    [
        (lambda whole, last: whole[:last], 2, "without the blocks of zeros that end a tar file"),
        (lambda whole, last: whole[: last + 9], 2, "no header at byte"),
        (lambda whole, last: whole[: last + HEADER + 9], 2, "2.mp4 ends at byte"),
        (lambda whole, last: whole[:last] + bytes(HEADER) + whole[last:], 2, "a block of zeros at byte"),
        (lambda whole, last: whole[:last] + bytes(3 * RECORD), 2, "zeros from byte"),
        (lambda whole, last: whole[: last + HEADER + 9] + bytes(3 * RECORD), 3, "zeros from byte"),
        (lambda whole, last: whole[:last] + header("x.mp4", -HEADER) + bytes(RECORD), 2, "a file of -512 bytes"),
        (lambda whole, last: whole[:last] + header("x", -HEADER, tarfile.GNUTYPE_LONGNAME), 2, "a file of -512 bytes"),
        (lambda whole, last: whole[:last] + header("x", 1 << 40), 2, "x ends at byte"),
        (lambda whole, last: whole[:last] + header("x", 2 << 20, b"x") + bytes(3 << 20), 2, "an extended header of"),
        (lambda whole, last: whole[:last] + header("x", 9, b"x") + padded(b"9 size=-4"), 2, "wrong extended header"),
        (lambda whole, last: whole[:last] + pax(b"size=-512"), 2, "a file of -512 bytes"),
        (lambda whole, last: whole[:last] + 3000 * pax(b"comment=x")[: 2 * HEADER], 2, "without the blocks of zeros"),
        (lambda whole, last: whole[:last] + header("x.mp4", 0, tarfile.GNUTYPE_SPARSE), 2, "sparse"),
    ],
)
def test_a_damaged_shard_gives_what_is_before_the_damage(
    tmp_path: Path, video: bytes, damage, clips: int, reason: str
) -> None:
    """It is reported where it ends, and how many clips it gave; none hangs, and none takes memory."""
    shard = tar(tmp_path / "s.tar", *((f"{i}.mp4", video) for i in range(3)))
    last = int(load_index(shard)["video"][2].rpartition("#")[2].split(":")[0]) - HEADER
    shard.write_bytes(damage(shard.read_bytes(), last))
    tar(tmp_path / "t.tar", ("0.mp4", video))
    with pytest.warns(UserWarning) as warned:
        assert len(load_index(tmp_path)) == clips + 1
    texts = [str(warning.message) for warning in warned]
    assert len(texts) == 2 and f"{shard}: truncated or not a tar file" in texts[0] and reason in texts[0]
    assert f"after {clips} clip(s)" in texts[0] and texts[1].endswith("1 of 2 shards are damaged; clips may be missing")


def pax(record: bytes) -> bytes:
    """An extended header of one record, and a file."""
    line = b"%d %s\n" % (len(record) + 4, record)
    assert len(line) == len(record) + 4
    return header("x", len(line), b"x") + padded(line) + header("x.mp4", 0)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_in_every_form_of_tar(tmp_path: Path, video: bytes, form: int) -> None:
    """Long ones, some that are not UTF-8, links and folders between them."""
    names = ["d/" + "x" * 90 + "/" + "y" * 80, "caf\udce9", "日本"]
    with tarfile.open(tmp_path / "s.tar", "w", format=form, encoding="utf-8") as shard:
        for name in names:
            for kind, end in ((tarfile.DIRTYPE, ".d"), (tarfile.REGTYPE, ".mp4"), (tarfile.SYMTYPE, ".lnk")):
                member = tarfile.TarInfo(name + end)
                member.type, member.linkname = kind, "z" * 99
                member.size = len(video) if kind == tarfile.REGTYPE else 0
                shard.addfile(member, io.BytesIO(video))
    index = load_index(tmp_path)
    assert index["id"][:] == [f"s/{name}" for name in (names[0], "café", names[2])]
    assert all(storage.open_bytes(locator).read() == video for locator in index["video"])


def test_what_is_no_file_is_not_waited_for(tmp_path: Path, video: bytes) -> None:
    os.mkfifo(tmp_path / "a.tar")
    (tmp_path / "b.tar").mkdir()
    (tmp_path / "c.tar").symlink_to("c.tar")
    (tmp_path / "d.tar").symlink_to("/dev/zero")
    tar(tmp_path / "e.tar", ("0.mp4", video))
    with pytest.warns(UserWarning) as warned:
        assert len(load_index(tmp_path)) == 1
    texts = "\n".join(str(warning.message) for warning in warned)
    for reason in ("a.tar: it cannot be read (a pipe", "b.tar: it cannot be read (a folder", "c.tar", "(a device"):
        assert reason in texts
    assert "4 of 5 shards are damaged" in texts


@pytest.mark.parametrize("name", ["pipe", "folder", "device", "loop", "nul\0", "\ud800"])
def test_a_clip_that_is_no_file_is_skipped(tmp_path: Path, name: str) -> None:
    """Also while videos are compared by their bytes."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    path = str(tmp_path / name)
    with pytest.raises(BrokenClip, match="it cannot be opened"), open_clip(path):
        pass
    with pytest.raises(BrokenClip, match="it cannot be opened"), open_clip(f"{path}#0:10"):
        pass
    assert identity.content_of(path) is None
    assert storage.same(path)
    assert not storage.exists(path)


def test_what_is_no_shard(tmp_path: Path, video: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(b"not a tar file" * 100)
    with pytest.warns(UserWarning, match="not a tar file"), pytest.raises(ValueError, match="has no row"):
        load_index(tmp_path)
    tar(tmp_path / "a.tar", ("0.mp4", video), mode="w:gz")
    with pytest.raises(ValueError, match="compressed; a clip cannot be read from the middle of it"):
        load_index(tmp_path)
    tar(tmp_path / "a.tar", ("0.mp4", video), ("0.json", b"[1]"))
    with pytest.raises(ValueError, match=r"a\.tar, a/0\.json: expected one JSON object; found \[1\]"):
        load_index(tmp_path)
    tar(tmp_path / "a.tar", ("0.mp4", video), ("0.json", about(narrations=[{"start": 2, "end": 1, "text": "x"}])))
    with pytest.raises(ValueError, match=r"a\.tar, a/0\.json: expected narration 0"):
        load_index(tmp_path)


@pytest.mark.parametrize("what", ["gone", "truncated", "overwritten"])
def test_a_shard_that_breaks_in_the_middle_of_an_epoch(tmp_path: Path, video: bytes, what: str) -> None:
    """Its clips are skipped, each with its reason; the others come in the order that they would have come in."""
    for name in "ab":
        tar(tmp_path / f"{name}.tar", *((f"{i}.mp4", video) for i in range(6)))
    index = load_index(tmp_path)
    clips = TrainClips(index, build(["word"]), FMT, 0, AugmentConfig())
    whole = [batch["id"] for batch in islice(train_loader(clips, 4, seed=3, workers=1), 9)]
    order = BatchSampler([Source(len(clips))], 4, 3)  # read here, and not ahead
    loader = (collate([clips[key] for key in keys]) for keys in order)
    found = [next(loader)]
    shard = tmp_path / "b.tar"
    if what == "gone":
        shard.unlink()
    elif what == "truncated":
        shard.write_bytes(shard.read_bytes()[:1000])
    else:
        shard.write_bytes(np.random.default_rng(0).bytes(shard.stat().st_size))
    found += list(islice(loader, 8))
    reason = {"gone": "no such file", "truncated": "the file ends at byte 1000", "overwritten": "not a media file"}[
        what
    ]
    for batch, ids in zip(found, whole, strict=True):
        left = ids if batch is found[0] else [name for name in ids if name.startswith("a/")]
        assert batch.get("id", []) == left
        assert sorted([*left, *(clip.id for clip in batch["skipped"])]) == sorted(ids)
        assert all(reason in clip.reason for clip in batch["skipped"])
    assert sum(len(batch["skipped"]) for batch in found) > 6


def test_shards_behind_a_url_are_read_in_part(tmp_path: Path, video: bytes) -> None:
    """Of 40 MB, what one clip takes; errors of the server are passed over."""
    filling = np.random.default_rng(0).bytes(20_000_000)
    shard = tar(tmp_path / "s.tar", ("0.bin", filling), ("1.mp4", video), ("1.txt", b"hello"), ("2.bin", filling))
    offset = load_index(shard)["video"][0].rpartition("#")[2]
    (tmp_path / "m.jsonl").write_text(json.dumps({"id": "x", "video": f"s.tar#{offset}", "text": "hello"}))
    with serve(tmp_path) as server:
        row = load_index(f"{server.url}/m.jsonl")[0]
        assert row["video"] == f"{server.url}/s.tar#{offset}"
        server.failures = 1
        with open_clip(row["video"]) as clip:
            window = clip.window(0.5, 4, 5.0, 8000, 8000, 32)
        assert server.sent < 12_000_000
        with open_clip(load_index(shard)[0]["video"]) as clip:
            assert np.array_equal(window.video, clip.window(0.5, 4, 5.0, 8000, 8000, 32).video)
        with pytest.raises(BrokenClip, match="no such file, or"), open_clip(f"{server.url}/none.tar#0:10"):
            pass
        assert load_index(f"{server.url}/s.tar")[0]["narrations"][0]["text"] == "hello"


def test_openings_and_readings_of_urls_are_tried_again(tmp_path: Path, video: bytes, monkeypatch, caplog) -> None:
    monkeypatch.setattr(storage, "PAUSE", 0.0)
    monkeypatch.setattr(storage, "PATIENCE", 0.3)
    tar(tmp_path / "s.tar", ("0.mp4", video))
    with serve(tmp_path) as server:
        for fault in ("refusals", "silences"):
            caplog.clear()
            setattr(server, fault, 2)
            assert len(load_index(f"{server.url}/s.tar")) == 1
            assert f"{server.url}/s.tar: " in caplog.text and "attempt 2 of 3 follows" in caplog.text
        assert "no answer within 0.3 s" in caplog.text
        file = storage.open_bytes(f"{server.url}/s.tar#512:{len(video)}")
        server.silences = 1
        assert file.read() == video
        server.silences = 9
        with pytest.raises(OSError, match=r"after 3 attempt\(s\): TimeoutError: no answer within 0.3 s"):
            load_index(f"{server.url}/s.tar")
        with pytest.raises(OSError, match=r"after 3 attempt\(s\): TimeoutError: no answer within 0.3 s"):
            load_index(f"{server.url}/")


def test_a_server_that_is_gone_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(storage, "PAUSE", 0.0)
    with serve(tmp_path) as server:
        url = server.url
    with (
        pytest.raises(BrokenClip, match="it cannot be opened: no such file, or its storage cannot be read"),
        open_clip(f"{url}/s.tar#0:10"),
    ):
        pass


@pytest.mark.parametrize(
    ("folder", "name", "joined"),
    [
        ("/data", "a/b.mp4", "/data/a/b.mp4"),
        ("/data", "/other/b.mp4", "/other/b.mp4"),
        ("/data", "s3://bucket/b.mp4", "s3://bucket/b.mp4"),
        ("s3://bucket/set", "s.tar#5:7", "s3://bucket/set/s.tar#5:7"),
        ("hf://datasets/a/b", "s 1.tar#5:7", "hf://datasets/a/b/s 1.tar#5:7"),
        ("https://host/set", "v.mp4", "https://host/set/v.mp4"),
    ],
)
def test_names_are_joined_to_folders_and_urls(folder: str, name: str, joined: str) -> None:
    assert storage.join(folder, name) == joined
