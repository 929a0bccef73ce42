"""Indexes from every layout: what is read, and what a person is told about files that are not right."""

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recipes.data import index as indexing
from recipes.data.index import load_index
from recipes.data.layouts import howto100m
from recipes.data.videos import videos_below

WHOLE = {"group": None, "start": None, "end": None}  # the clip is its whole file
NARRATIONS = [{"start": 0.0, "end": 1.5, "text": "a red ball"}, {"start": 2.0, "end": 3.0, "text": "it rolls"}]


def unweighted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without their weights, which nothing has said."""
    assert all(row.pop("sound_weight") is None for row in rows)
    assert all(narration.pop("weight") is None for row in rows for narration in row["narrations"])
    return rows


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"video")


def jsonl(root: Path, *rows: Any) -> Path:
    path = root / "manifest.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def howto(
    root: Path, captions: str, table: str = "video_id,category_1,category_2,rank,task_id\nabc,Food,Cake,1,7\n"
) -> Path:
    touch(root, "videos/abc.mp4")
    (root / "HowTo100M_v1.csv").write_text(table)
    (root / "raw_caption.json").write_text(captions)
    return root


def test_three_kinds_of_manifest_say_the_same(tmp_path: Path) -> None:
    touch(tmp_path, "clips/a.mp4", "b.mp4")
    rows = [
        {"video": "clips/a.mp4", "split": "train", **WHOLE, "narrations": NARRATIONS},
        {"video": "b.mp4", "split": "test", "start": 1.5, "end": 4.0, "narrations": []},
    ]
    lines = jsonl(tmp_path, *rows)
    parquet = tmp_path / "manifest.parquet"
    pq.write_table(pa.Table.from_pylist(rows), parquet)
    table = tmp_path / "manifest.csv"
    quoted = json.dumps(NARRATIONS).replace('"', '""')
    table.write_text(f'video,split,start,end,narrations\nclips/a.mp4,train,,,"{quoted}"\nb.mp4,test,1.5,4,\n')
    expected = [
        {
            "id": "clips/a",
            "video": str(tmp_path / "clips/a.mp4"),
            "split": "train",
            "group": None,
            **WHOLE,
            "narrations": NARRATIONS,
        },
        {
            "id": "b",
            "video": str(tmp_path / "b.mp4"),
            "split": "test",
            "group": None,
            "start": 1.5,
            "end": 4.0,
            "narrations": [],
        },
    ]
    for path in (lines, parquet, table):
        assert unweighted(load_index(path).to_list()) == expected, path
        assert unweighted(load_index(path, "test").to_list()) == expected[1:], path


def test_text_alone_is_one_narration_over_the_clip_and_none_where_empty(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    rows = [{"video": "a.mp4", "text": text} for text in ("a cat", "", None, "  ")]
    index = load_index(jsonl(tmp_path, *rows))
    assert index["narrations"][0] == [{"start": 0.0, "end": math.inf, "text": "a cat", "weight": None}]
    assert index["narrations"][1:] == [[], [], []]
    assert index["split"][:] == [""] * 4


def test_default_ids_are_unique(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "a.webm")
    rows = [{"video": name, "text": "x"} for name in ("a.mp4", "a.webm", "a.mp4")] + [
        {"video": "a.mp4", "text": "x", "id": 7}
    ]
    assert load_index(jsonl(tmp_path, *rows))["id"][:] == ["a", "a#2", "a#3", "7"]


def test_an_id_that_occurs_twice_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    rows = [{"video": "a.mp4", "text": "x", "id": name} for name in ("one", "two", "one")]
    with pytest.raises(ValueError, match=r"1 id\(s\) occur more than once, for example one$"):
        load_index(jsonl(tmp_path, *rows))


def test_a_split_without_rows_says_which_there_are(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    path = jsonl(tmp_path, *({"video": "a.mp4", "text": "x", "split": split} for split in ("train", "train", "val")))
    with pytest.raises(ValueError, match=r"no row has split 'test'; rows by split: train: 2, val: 1"):
        load_index(path, "test")


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("{video: a.mp4}", r"line 2: expected one JSON object; .* at character 2"),
        ('["a.mp4", "text"]', "line 2: expected one JSON object; found"),
        ({"text": "x"}, "line 2: expected 'video' to be a string; found only the fields text"),
        ({"video": 3, "text": "x"}, "line 2: expected 'video' to be a string; found 3"),
        ({"video": "", "text": "x"}, "line 2: expected 'video'"),
        ({"video": "a.mp4"}, "line 2: expected a field 'text', 'narrations' or 'label'; found video"),
        ({"video": "a.mp4", "text": 5}, "line 2: expected 'text' to be a string; found 5"),
        ({"video": "a.mp4", "narrations": {"start": 0}}, "line 2: 'narrations' is not a list"),
        ({"video": "a.mp4", "narrations": [{"start": 0, "text": "x"}]}, "line 2: expected narration 0"),
        ({"video": "a.mp4", "narrations": [{"start": 2, "end": 1, "text": "x"}]}, "line 2: expected narration 0"),
        ({"video": "a.mp4", "narrations": [{"start": "soon", "end": 1, "text": "x"}]}, "line 2: expected narration 0"),
        ({"video": "a.mp4", "narrations": "[{"}, "line 2: 'narrations' is not JSON"),
        ({"video": "a.mp4", "text": "x", "start": 2, "end": 2}, "line 2: expected 'start' and 'end' in seconds"),
        ({"video": "a.mp4", "text": "x", "start": -1}, "line 2: expected 'start' and 'end' in seconds"),
        ({"video": "a.mp4", "text": "x", "end": "soon"}, "line 2: expected 'start' and 'end' in seconds"),
    ],
)
def test_a_wrong_row_is_named_by_file_and_line(tmp_path: Path, row: Any, complaint: str) -> None:
    touch(tmp_path, "a.mp4")
    with pytest.raises(ValueError, match=rf"manifest\.jsonl, {complaint}"):
        load_index(jsonl(tmp_path, {"video": "a.mp4", "text": "x"}, row))


def test_a_wrong_csv_or_parquet_file(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    (tmp_path / "m.csv").write_text("video,text\na.mp4,one\na.mp4,one,two\n")
    with pytest.raises(ValueError, match=r"m\.csv, line 3: expected 2 columns: video, text"):
        load_index(tmp_path / "m.csv")
    (tmp_path / "m.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"m\.parquet: not a Parquet file"):
        load_index(tmp_path / "m.parquet")


@pytest.mark.parametrize("name", ["m.jsonl", "m.csv"])
def test_an_empty_manifest(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match="has no row"):
        load_index(tmp_path / name)


def test_no_layout_and_nothing_at_all(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"nothing here; expected a folder with one of HowTo.* \.jsonl"):
        load_index(tmp_path / "none")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(
            ValueError, match=r"not a layout that is known; expected a folder with one of HowTo100M_v1\.csv"
        ):
            load_index(path)


def test_not_one_video_is_an_error_some_missing_ones_are_not(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"video": "a.mp4", "text": "x"}, {"video": "b.mp4", "text": "x"})
    with pytest.raises(FileNotFoundError, match=r"not one of its 2 videos exists; the first would be .*a\.mp4"):
        load_index(path)
    touch(tmp_path, "b.mp4")
    assert len(load_index(path)) == 2  # a.mp4 is skipped, and counted, when it is to be read


def test_lines_that_are_not_utf8_are_read_as_cp1252_and_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    path = tmp_path / "m.jsonl"
    texts = {"plain": "utf-8", "café": "cp1252", "crème — brûlée": "utf-8", "naïve": "cp1252"}
    rows = [json.dumps({"video": "a.mp4", "text": t}, ensure_ascii=False).encode(code) for t, code in texts.items()]
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join(rows))
    with pytest.warns(UserWarning, match=r"m\.jsonl: 2 line\(s\) are not UTF-8, the first is line 2; read as cp1252"):
        index = load_index(path)
    assert [n[0]["text"] for n in index["narrations"]] == list(texts)


def test_half_a_surrogate_pair_can_be_stored(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    index = load_index(jsonl(tmp_path, '{"video": "a.mp4", "text": "smile \\ud83d"}'))
    assert index["narrations"][0][0]["text"] == "smile ?"


def test_a_folder_of_videos_with_texts_beside_them(tmp_path: Path) -> None:
    """It is what the same files are in a tar shard; of what is no file nothing is read."""
    touch(tmp_path, "train/a.1.mp4", "b.MKV", "c.mp4", "pictures/d.jpg", "val/e.webm")
    (tmp_path / "train" / "a.1.txt").write_text("words")
    (tmp_path / "b.json").write_text('{"id": "x", "caption": "a caption", "start": 1, "end": 2, "split": "test"}')
    (tmp_path / "d.txt").write_text("no video")
    (tmp_path / "train" / "loop").symlink_to("..")
    index = load_index(tmp_path).to_list()
    assert [(row["id"], row["split"]) for row in index] == [
        ("x", "test"), ("c", ""), ("train/a.1", "train"), ("val/e", "validate"),
    ]  # fmt: skip
    assert [[narration["text"] for narration in row["narrations"]] for row in index] == [
        ["a caption"],
        [],
        ["words"],
        [],
    ]
    assert [row["video"] for row in index[:2]] == [str(tmp_path / "b.MKV"), str(tmp_path / "c.mp4")]
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(ValueError, match=rf"{tmp_path}, b\.json: expected one JSON object"):
        load_index(tmp_path)
    (tmp_path / "b.json").unlink()
    os.mkfifo(tmp_path / "b.json")
    with pytest.raises(OSError, match="a pipe, not a regular file"):
        load_index(tmp_path)


def test_loops_of_links_end(tmp_path: Path) -> None:
    """Two links to a folder in itself are 2^40 folders."""
    touch(tmp_path, "d/v.mp4", "d/e/v.mp4", "w.webm")
    for name in ("d/a", "d/b", "d/e/c"):
        (tmp_path / name).symlink_to(tmp_path / "d")
    (tmp_path / "d" / "self").symlink_to("self")
    assert videos_below(tmp_path) == {"v": str(tmp_path / "d" / "v.mp4"), "w": str(tmp_path / "w.webm")}


def test_a_name_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "v\udcff.mp4", "v\udcff.txt")
    with pytest.raises(ValueError, match=r"expected names in UTF-8; found '.*v\\udcff"):
        load_index(tmp_path)


def test_temporary_folders_of_processes_that_were_killed_are_removed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("killed", "alive", "new", "none"):
        (tmp_path / f"harmony-index-{name}").mkdir()
        if name != "new":
            os.utime(tmp_path / f"harmony-index-{name}", (0, 0))
    lock = indexing._lock(tmp_path / "harmony-index-alive")
    (tmp_path / "harmony-index-none").rename(tmp_path / "other")
    touch(tmp_path, "data/a.mp4")
    made = load_index(jsonl(tmp_path / "data", {"video": "a.mp4", "text": ""}))
    left = {path.name for path in tmp_path.iterdir()} - {"data", Path(made.cache_files[0]["filename"]).parent.name}
    assert left == {"harmony-index-alive", "harmony-index-new", "other"}
    os.close(lock)


def test_howto100m(tmp_path: Path) -> None:
    captions = {
        "abc": {"start": [0, 2.5], "end": [2, 4.0], "text": ["first we mix", None]},
        "unlisted": {"start": [0], "end": [1], "text": ["x"]},
        "gone": {"start": [0], "end": [1], "text": ["x"]},
    }
    table = "video_id,category_1,category_2,rank,task_id\n" + "".join(
        f"{name},Food,Cake,1,{task}\n" for task, name in enumerate(["abc", "def", "gone", "abc", "lies"])
    )
    root = howto(tmp_path, json.dumps(captions), table)
    (root / "caption.json").write_text("{}")  # the raw captions come first
    touch(root, "videos/def.webm", "lies.mkv")
    with pytest.warns(UserWarning, match="1 of 4 videos have no file; left out"):
        index = load_index(root)
    assert unweighted(index.to_list()) == [
        {
            "id": "abc",
            "video": str(root / "videos/abc.mp4"),
            "split": "",
            **WHOLE,
            "narrations": [{"start": 0.0, "end": 2.0, "text": "first we mix"}],
        },
        {"id": "def", "video": str(root / "videos/def.webm"), "split": "", **WHOLE, "narrations": []},
        {"id": "lies", "video": str(root / "lies.mkv"), "split": "", **WHOLE, "narrations": []},
    ]


def test_howto100m_with_a_split_and_stop_words_removed(tmp_path: Path) -> None:
    root = howto(tmp_path, "{}", "video_id,rank,split\nabc,1,test\n")
    (root / "raw_caption.json").unlink()
    (root / "caption.json").write_text(json.dumps({"abc": {"start": [0], "end": [1], "text": ["mix"]}}))
    assert load_index(root, "test")["narrations"][0][0]["text"] == "mix"


def test_howto100m_with_a_table_of_captions_per_video(tmp_path: Path) -> None:
    root = howto(tmp_path, "{}", "video_id,rank\nabc,1\nmute,2\n")
    (root / "raw_caption.json").unlink()
    touch(root, "videos/mute.mp4")
    captions = root / "captions" / "abc.csv"
    captions.parent.mkdir()
    captions.write_text(',start,end,text\n0,0.5,2.0,"cut, then fry"\n1,2.0,3.5,\n2,4,5,serve\n')  # as pandas writes
    assert [row["narrations"] for row in unweighted(load_index(root).to_list())] == [
        [{"start": 0.5, "end": 2.0, "text": "cut, then fry"}, {"start": 4.0, "end": 5.0, "text": "serve"}],
        [],
    ]
    captions.write_text("begin,end,text\n")
    with pytest.raises(ValueError, match=r"abc\.csv, line 1: expected the columns start, end, text"):
        load_index(root)


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 24])
@pytest.mark.parametrize("indent", [None, 2])
def test_howto100m_captions_are_read_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, indent: int | None
) -> None:
    names = [f"v{i}" for i in range(9)]
    captions = {
        name: {"start": [i], "end": [i + 1], "text": [f'say "{name}", {{é}} \\']} for i, name in enumerate(names)
    }
    root = howto(tmp_path, "", "video_id\n" + "\n".join(names))
    (root / "raw_caption.json").write_text(json.dumps(captions, indent=indent, ensure_ascii=False), encoding="utf-8")
    touch(root, *(f"videos/{name}.mp4" for name in names))
    monkeypatch.setattr(howto100m, "BLOCK", block)
    index = load_index(root)
    assert index["id"][:] == names
    assert [n[0]["text"] for n in index["narrations"]] == [f'say "{name}", {{é}} \\' for name in names]


def test_howto100m_captions_that_are_not_utf8(tmp_path: Path) -> None:
    root = howto(tmp_path, "")
    (root / "raw_caption.json").write_bytes('{"abc": {"start": [0], "end": [1], "text": ["crème"]}}'.encode("cp1252"))
    with pytest.warns(UserWarning, match=r"raw_caption\.json: 1 line\(s\) are not UTF-8"):
        assert load_index(root)["narrations"][0][0]["text"] == "crème"


@pytest.mark.parametrize(
    ("captions", "complaint"),
    [
        ("", "expected one whole object"),
        ('{"abc": {"start": [0], "end"', "expected one whole object"),
        ('[{"abc": 1}]', "expected one whole object"),
        ("{} {}", "expected one object and nothing after it"),
        ('{"abc": {"start": [0], "end": [1, 2], "text": ["x"]}}', "video 'abc': expected three lists of one length"),
        ('{"abc": {"start": [0], "end": [1]}}', "video 'abc': expected three lists of one length"),
        ('{"abc": ["x"]}', "video 'abc': expected three lists of one length"),
    ],
)
def test_howto100m_wrong_captions(tmp_path: Path, captions: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=rf"raw_caption\.json.*{complaint}"):
        load_index(howto(tmp_path, captions))


def test_howto100m_without_files(tmp_path: Path) -> None:
    root = howto(tmp_path, "{}")
    assert load_index(root)["id"][:] == ["abc"]
    (root / "videos/abc.mp4").unlink()
    with pytest.raises(FileNotFoundError, match=r"not one of the 1 videos in HowTo100M_v1\.csv is here; .* abc\.mp4"):
        load_index(root)
    (root / "raw_caption.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither raw_caption\.json nor caption\.json, nor a folder captions"):
        load_index(root)
    (root / "HowTo100M_v1.csv").write_text("id,rank\nabc,1\n")
    (root / "raw_caption.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"HowTo100M_v1\.csv, line 1: expected the columns video_id; there is no video_id"
    ):
        load_index(root)
