"""Embeddings of a data set as files: against the same clips embedded one by one; a kill costs a part at most."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from recipes import embed as recipe
from recipes.data.clips import NarratedClips, collate
from recipes.data.index import load_index
from recipes.embed import main
from recipes.evaluation.parts import Parts
from recipes.model.build import model_inputs
from recipes.pretrain import pretrain
from recipes.restore import restore
from tests.recipes import media
from tests.recipes.test_youtube8m import run as features_run

VECTORS = ("va_video", "va_audio", "vt_video", "vt_text", "model_video", "model_audio", "model_text")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five clips: one with two narrations, one mute, one that is no video, one without text."""
    root = tmp_path_factory.mktemp("mixed")
    told = [{"start": 0.0, "end": 1.5, "text": "a red ball"}, {"start": 2.0, "end": 3.0, "text": "it rolls"}]
    for name in ("two", "mute", "untold"):
        media.write(root / f"{name}.mp4", seconds=3.0, size=(48, 32), audio=name != "mute")
    (root / "broken.mp4").write_bytes(b"no video")
    rows = [{"video": "two.mp4", "narrations": told}, {"video": "mute.mp4", "text": "a ball"}]
    rows += [{"video": "broken.mp4", "text": "a star"}, {"video": "untold.mp4", "text": ""}]
    (root / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return root / "manifest.jsonl"


def embedded(checkpoint: Path, data: Path, out: Path, *options: str) -> Path:
    assert main([f"checkpoint={checkpoint}", f"data={data}", f"out={out}", *options]) == 0
    assert not list(out.parent.glob(".*"))  # nothing is left lying about
    return out


def test_rows_are_the_clips_of_the_data_one_by_one(checkpoint: Path, mixed: Path, tmp_path: Path, capsys) -> None:
    rows = pq.read_table(embedded(checkpoint, mixed, tmp_path / "e.parquet", "windows=2")).to_pylist()
    assert "5 clips, 1 of them not readable" in capsys.readouterr().out
    assert [(row["clip"], row["id"], row["narration"]) for row in rows] == [
        (0, "two", 0), (1, "two", 1), (2, "mute", 0), (3, "broken", 0), (4, "untold", -1)
    ]  # fmt: skip
    assert [row["caption"] for row in rows] == ["a red ball", "it rolls", "a ball", "a star", ""]
    assert [row["has_audio"] for row in rows] == [True, True, False, False, True]
    assert [row["has_text"] for row in rows] == [True, True, True, False, False]
    assert [row["readable"] for row in rows] == [row["error"] is None for row in rows] == [True] * 3 + [False, True]
    assert all(rows[3][name] is None for name in (*VECTORS, "starts")) and "not a media file" in rows[3]["error"]
    assert rows[2]["va_audio"] is rows[2]["model_audio"] is rows[4]["vt_text"] is rows[4]["model_text"] is None

    _, config, tokenizer, modules = restore(checkpoint)
    clips = NarratedClips(load_index(mixed), tokenizer, config.clip, 2)
    modules.eval()
    for number in (0, 4):
        seen = [clips[number, window] for window in range(2)]
        assert rows[number]["starts"] == [clip.start for clip in seen]
        with torch.no_grad():
            encoded = modules["model"](**model_inputs(collate(seen), torch.device("cpu")))
            spaces = modules["objective"].project(encoded)
        expected = {"va_video": spaces["va"][0], "va_audio": spaces["va"][1], "vt_video": spaces["vt"][0]}
        expected |= {"model_video": encoded["video"], "model_audio": encoded["audio"]}
        if number == 0:
            expected |= {"vt_text": spaces["vt"][1][:, 0], "model_text": encoded["text"][:, 0]}
        for name, windows in expected.items():
            assert np.allclose(rows[number][name], windows.mean(0), atol=1e-5), name


def test_safetensors_hold_the_same(checkpoint: Path, mixed: Path, tmp_path: Path) -> None:
    table = pq.read_table(embedded(checkpoint, mixed, tmp_path / "e.parquet")).to_pylist()
    tensors = load_file(embedded(checkpoint, mixed, tmp_path / "e.safetensors"))
    for name in VECTORS:
        plain = [row[name] or [0.0] * tensors[name].shape[1] for row in table]
        assert tensors[name].dtype == np.float32 and np.array_equal(tensors[name], np.float32(plain)), name
    for name in ("readable", "has_audio", "has_text"):
        assert tensors[name].tolist() == [row[name] for row in table]
    lines = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert [line | {"starts": row["starts"]} for line, row in zip(lines, table, strict=True)] == [
        {key: row[key] for key in ("clip", "id", "video", "narration", "caption", "starts", "error")} for row in table
    ]
    with safe_open(tmp_path / "e.safetensors", "pt") as file:  # the official reader, row by row
        assert file.get_slice("vt_video")[1:2].tolist()[0] == pytest.approx(table[1]["vt_video"])


@pytest.mark.parametrize("ending", ["parquet", "safetensors"])
def test_a_crash_costs_one_part(checkpoint, mixed, tmp_path, monkeypatch, caplog, ending) -> None:
    monkeypatch.setattr(recipe, "ROWS", 2)
    whole = embedded(checkpoint, mixed, tmp_path / f"whole.{ending}").read_bytes()
    write, written, out = Parts.write, [], tmp_path / f"torn.{ending}"

    def failing(self, number, table):
        written.append(number)
        if len(written) == 2:
            raise OSError("the disk is full")
        write(self, number, table)

    monkeypatch.setattr(Parts, "write", failing)
    arguments = [f"checkpoint={checkpoint}", f"data={mixed}", f"out={out}"]
    assert main(arguments) == 2 and not out.exists()
    other = [*arguments, "windows=3"]
    assert main(other) == 2  # parts of other embeddings are not gone on with
    with caplog.at_level("INFO"):
        embedded(checkpoint, mixed, out)
    assert written == [0, 1, 1, 2] and "going on: 2 of 5 clips are embedded already" in caplog.text
    assert out.read_bytes() == whole


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["parquet", "safetensors"])
def test_memory_does_not_grow_with_the_data(checkpoint, mixed, tmp_path, monkeypatch, ending) -> None:
    """Clips that are not there take the same room in the table as others, and no time."""
    monkeypatch.setattr(recipe, "ROWS", 64)

    def peak(number: int) -> int:
        rows = [{"id": str(i), "video": "two.mp4" if i < 3 else "gone.mp4", "text": "a ball"} for i in range(number)]
        path = mixed.with_name(f"{number}.jsonl")
        path.write_text("\n".join(map(json.dumps, rows)))
        index = load_index(path)
        with monkeypatch.context() as patch:
            patch.setattr(recipe, "load_index", lambda data, split: index)
            tracemalloc.start()
            embedded(checkpoint, path, tmp_path / f"{number}.{ending}")
            used = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return used

    peak(100)
    assert peak(1200) < peak(300) + 2**19  # the vectors of 900 clips are 1.2 MB


def test_features_are_embedded_too(tmp_path: Path) -> None:
    """YouTube-8M's records, by a model that takes them."""
    config = features_run(tmp_path, texts=True)
    pretrain(config)
    rows = pq.read_table(embedded(config.folder, Path(config.data.manifest), tmp_path / "out" / "e.parquet"))
    assert len(rows) == 12 and all(rows.column("readable").to_pylist()) and rows.column("vt_text").null_count == 0


def test_a_dry_run_says_what_is_done_already(checkpoint, mixed, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(recipe, "ROWS", 2)
    command = [f"checkpoint={checkpoint}", f"data={mixed}", f"out={tmp_path / 'e.parquet'}"]
    assert main(["--dry-run", *command]) == 0
    assert "5 clips" in (printed := capsys.readouterr().out) and "in 3 part(s); 0 part(s) are done" in printed
    assert not list(tmp_path.iterdir())
    assert main(command) == 0 and main(["--dry-run", *command]) == 0
    assert "finished before; nothing to do" in capsys.readouterr().out
    assert main(["--dry-run", *command, f"out={Path(__file__) / 'e.parquet'}"]) == 2
    assert "no folder" in capsys.readouterr().err


def test_wrong_commands_say_what_is_wrong(checkpoint: Path, mixed: Path, tmp_path: Path, capsys) -> None:
    for wrong, complaint in (
        (["out=e.npz"], "that ends in .parquet or .safetensors"),
        (["out=e.parquet", "windows=0"], "windows=0 must be at least 1"),
        ([f"data={tmp_path / 'none.jsonl'}", f"out={tmp_path / 'e.parquet'}"], "there is nothing here"),
    ):
        assert main([f"checkpoint={checkpoint}", f"data={mixed}", *wrong]) == 2
        assert complaint in capsys.readouterr().err
