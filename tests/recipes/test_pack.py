"""Packing: shards train as their videos do, what cannot be read is listed, an interrupted pack goes on."""

import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from recipes.data import pack, storage
from recipes.data.index import load_index
from recipes.files import jsonl
from recipes.pretrain import pretrain
from tests.recipes import media
from tests.recipes.faulty import fatal


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """A manifest of seven clips; the fourth is broken, the sixth has no file."""
    folder = tmp_path_factory.mktemp("videos")
    rows = []
    for i in range(7):
        path = media.write(folder / f"{i}.mp4", seconds=1.0, fps=5, size=(64, 48))
        rows.append({"id": f"clip.{i}", "video": path.name, "split": "train", "text": f"text {i}"})
    rows[1] |= {"start": 0.2, "end": 0.9, "group": "film 1"}
    rows[2] = rows[2] | {
        "narrations": [{"start": 0, "end": 0.5, "text": "timed"}, {"start": 0.5, "end": 1, "text": "too"}]
    }
    (folder / "3.mp4").write_bytes(b"broken")
    (folder / "5.mp4").unlink()
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "m.jsonl"


def packed(**keys: object) -> int:
    return pack.main([f"{name}={value}" for name, value in keys.items()])


def contents(index: Dataset) -> list[dict]:
    """The rows, with the bytes of their videos in place of where those are."""
    return [row | {"video": storage.open_bytes(row["video"]).read()} for row in index]


def test_shards_hold_what_was_packed(videos: Path, tmp_path: Path, capsys) -> None:
    assert packed(data=videos, out=tmp_path / "shards", clips=2) == 0
    assert "5 clips; train on them with data.manifest=" in capsys.readouterr().out
    names = sorted(path.name for path in tmp_path.joinpath("shards").iterdir())
    assert names == ["index.parquet", "pack.json", *(f"shard-00000{i}.tar" for i in range(4)), "skipped.jsonl"]
    expected = [row for row in load_index(videos) if row["id"] not in ("clip.3", "clip.5")]
    assert contents(load_index(tmp_path / "shards")) == contents(Dataset.from_list(expected))
    skipped = {row["id"]: row["reason"] for row in jsonl.read_rows(tmp_path / "shards" / "skipped.jsonl")}
    assert set(skipped) == {"clip.3", "clip.5"} and "No such file" in skipped["clip.5"]

    shutil.move(tmp_path / "shards", tmp_path / "elsewhere")  # and the shards alone are enough
    whole = load_index(tmp_path / "elsewhere").to_list()
    (tmp_path / "elsewhere" / "index.parquet").unlink()
    assert load_index(tmp_path / "elsewhere").to_list() == whole
    assert packed(shards=tmp_path / "elsewhere", out=tmp_path / "i.parquet") == 0
    assert load_index(tmp_path / "i.parquet").to_list() == whole


def test_an_interrupted_pack_goes_on(videos: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    keys, whole, halves = {"data": videos, "clips": 2}, tmp_path / "whole", tmp_path / "halves"
    assert packed(**keys, out=whole) == 0
    real, calls = pack.add, []

    def full(*arguments):
        calls.append(1)
        if len(calls) == 6:
            raise OSError(28, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(pack, "add", full)
    assert packed(**keys, out=halves) == 2
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    times = {path.name: path.stat().st_mtime_ns for path in halves.glob("shard*.tar")}
    assert 0 < len(times) < 4
    assert packed(**keys, out=halves) == 0
    for path in whole.glob("*.tar"):
        assert (halves / path.name).read_bytes() == path.read_bytes()
    assert all((halves / name).stat().st_mtime_ns == time for name, time in times.items())
    assert (halves / "index.parquet").read_bytes() == (whole / "index.parquet").read_bytes()


def test_a_pack_that_is_killed_at_any_write_goes_on(videos: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """Whatever it leaves behind is no obstacle, and no clip is listed twice."""
    keys, real, left = {"data": videos, "clips": 4, "out": tmp_path / "s"}, os.replace, []

    def killed(*arguments):
        """Every file is written in vain once."""
        if arguments[1] not in left:
            left.append(arguments[1])
            raise OSError("killed")
        real(*arguments)

    monkeypatch.setattr(os, "replace", killed)
    codes = [packed(**keys) for _ in range(6)]
    assert codes == [2, 2, 2, 2, 2, 0] and len(left) == 5  # its contents, two shards, what is skipped, the index
    assert [row["id"] for row in jsonl.read_rows(tmp_path / "s" / "skipped.jsonl")] == ["clip.3", "clip.5"]
    assert len(load_index(tmp_path / "s")) == 5


def test_videos_that_end_the_process_that_reads_them_are_listed(
    videos: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(pack, "open_header", fatal)
    assert packed(data=videos, out=tmp_path / "s") == 2
    assert "there is not one clip in it" in capsys.readouterr().err
    rows = jsonl.read_rows(tmp_path / "s" / "skipped.jsonl")
    assert len(rows) == 7 and all("signal 11" in row["reason"] for row in rows)


def test_nothing_is_packed_over_something_else(videos: Path, tmp_path: Path, capsys) -> None:
    assert packed(data=videos, out=videos.parent) == 2
    assert "expected an empty folder" in capsys.readouterr().err
    assert packed(data=videos, out=tmp_path / "s") == 0
    assert packed(data=videos, out=tmp_path / "s", clips=3) == 2
    assert "choose another folder" in capsys.readouterr().err


def test_a_dry_run_counts_and_refuses_and_packs_nothing(videos: Path, tmp_path: Path, capsys) -> None:
    keys = [f"data={videos}", "clips=2", "--dry-run"]
    assert pack.main([*keys, f"out={tmp_path / 's'}"]) == 0
    assert "shards of 2 clips each, of 7 clips" in capsys.readouterr().out and not list(tmp_path.iterdir())
    assert pack.main([*keys, f"out={videos.parent}"]) == 2 and pack.main([*keys, "hub=x", "out=y"]) == 2
    assert pack.main([f"shards={tmp_path}", f"out={tmp_path / 'i.parquet'}", "--dry-run"]) == 2
    assert "not one shard in it" in capsys.readouterr().err


def test_training_on_shards_is_training_on_their_videos(tiny, tmp_path: Path, corpus: Path) -> None:
    """To the last digit: the order, the windows and the captions are the same."""
    assert packed(data=corpus, out=tmp_path / "shards", clips=4) == 0
    losses = []
    for name, where in (("files", corpus), ("shards", tmp_path / "shards")):
        config = tiny(f"run.name={name}", f"data.manifest={where}")
        pretrain(config)
        losses.append([row["loss"] for row in jsonl.read_rows(config.folder / "metrics.jsonl") if "loss" in row])
    assert losses[0] == losses[1] and losses[0]


# ------------------------------------------------------------------------------------------- Hugging Face data sets


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    return [media.write(folder / f"{i}.mp4", seconds=1.0, fps=5, size=(64, 48)) for i in range(3)]


def check(out: Path, files: list[Path], ids: list[str]) -> None:
    index = load_index(out)
    assert index["id"][:] == ids
    assert [row["narrations"][0]["text"] for row in index] == ["a", "b", "c"]
    assert [storage.open_bytes(row["video"]).read() for row in index] == [file.read_bytes() for file in files]


def test_parquet_files_with_the_bytes_of_videos(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "set" / "data").mkdir(parents=True)
    clips = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    table = pa.table({"clip": clips, "caption": ["a", "b", "c"], "key": ["x", "y", "z"]})
    pq.write_table(table, tmp_path / "set" / "data" / "train-00000.parquet")
    columns = {"video": "clip", "text": "caption", "id": "key"}
    assert packed(hub=tmp_path / "set", **columns, clips=2, out=tmp_path / "s") == 0
    check(tmp_path / "s", files, ["x", "y", "z"])


def test_a_folder_of_videos_with_a_table(files: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "set" / "train"
    folder.mkdir(parents=True)
    for file in files:
        shutil.copy(file, folder)
    lines = [f"{file.name},{text}" for file, text in zip(files, "abc", strict=True)]
    (folder / "metadata.csv").write_text("file_name,text\n" + "\n".join(lines) + "\n")
    assert packed(hub=tmp_path / "set", text="text", out=tmp_path / "s") == 0
    check(tmp_path / "s", files, [f"{i:09d}" for i in range(3)])


def test_a_data_set_that_was_saved_with_paths(files: list[Path], tmp_path: Path, capsys) -> None:
    data = Dataset.from_dict({"video": [str(file) for file in files], "text": ["a", "b", "c"]})
    DatasetDict({"tiny": data}).save_to_disk(tmp_path / "set")
    keys = {"hub": tmp_path / "set", "out": tmp_path / "s", "text": "text"}
    assert packed(**keys, split="train") == 2 and "no split 'train'; it has tiny" in capsys.readouterr().err
    assert packed(**keys, split="tiny", clips=2) == 0
    check(tmp_path / "s", files, [f"{i:09d}" for i in range(3)])
    assert packed(**keys, split="tiny", clips=2) == 0  # there is nothing left to do
    keys |= {"out": tmp_path / "t", "split": "tiny"}
    assert packed(**keys | {"text": "words"}) == 2
    assert "no column words; there are video, text" in capsys.readouterr().err
