"""The loader's benchmark on a tiny corpus: its stages are all of a clip's time, and it leaves no clock behind."""

import csv

import av
import pytest

from recipes.data.index import load_index
from recipes.research.benchmark import loader
from recipes.research.benchmark.__main__ import main
from recipes.research.benchmark.loader import MOVE, REST, STAGES, WHOLE, Stopwatch
from tests.recipes.conftest import TINY
from tests.recipes.media import probe


@pytest.mark.slow
def test_stages_add_up(corpus, tmp_path, capsys):
    before = [getattr(owner, name) for functions in STAGES.values() for owner, name in functions]
    recipe = [*TINY, f"data.manifest={corpus}", f"data.test={corpus / 'test.jsonl'}"]
    assert main(["loader", "rounds=2", f"out={tmp_path}", *(f"recipe.{override}" for override in recipe)]) == 0
    with open(tmp_path / "loader.csv", newline="") as file:
        rows = {row["stage"]: row for row in csv.DictReader(file)}
    assert list(rows) == [*STAGES, REST, WHOLE, MOVE]
    assert all(float(row["ms"]) > 0 for row in rows.values())
    parts = sum(float(rows[stage]["ms"]) for stage in [*STAGES, REST])
    assert parts == pytest.approx(float(rows[WHOLE]["ms"]), rel=1e-3)  # the median of two rounds is their mean
    assert float(rows[WHOLE]["clips_per_second"]) == pytest.approx(1000 / float(rows[WHOLE]["ms"]), rel=1e-3)
    size = 4 * 32 * 32 * 3 + 4 * 2560 + 8 * 3 * 8  # pictures, sound and words; then masks, keys, index and start
    assert size < int(rows[WHOLE]["bytes"]) < size + 100
    assert (rows[WHOLE]["clips"], rows[WHOLE]["skipped"], rows[WHOLE]["data"]) == ("8", "0", str(corpus))
    text = (tmp_path / "loader.md").read_text()
    assert text in capsys.readouterr().out and all(f"| {stage} |" in text for stage in rows)
    assert before == [getattr(owner, name) for functions in STAGES.values() for owner, name in functions]


def test_a_stage_stands_still_while_another_runs(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(loader.time, "process_time", lambda: next(clock))
    watch = Stopwatch()  # every look at the clock takes a second
    inner = watch.timed("seek, demux", lambda: None)
    watch.timed("decode pictures", lambda: [inner(), inner()])()
    watch.stop()
    spent = {stage: seconds for stage, seconds in watch.seconds.items() if seconds}
    assert spent == {"decode pictures": 3, "seek, demux": 2, REST: 2}


def test_nothing_to_read_is_an_error(tmp_path, capsys):
    for name in ("train", "test"):
        lines = [f'{{"video": "{name}-{n}.mp4", "text": "word"}}' for n in range(4)]
        for n in range(4):
            (tmp_path / f"{name}-{n}.mp4").touch()
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    recipe = [*TINY, f"data.manifest={tmp_path / 'train.jsonl'}", f"data.test={tmp_path / 'test.jsonl'}"]
    assert main(["loader", *(f"recipe.{override}" for override in recipe)]) == 2
    assert "no clip of the first batch can be read" in capsys.readouterr().err


def test_web_video_has_large_pictures_and_few_key_frames(corpus, tmp_path):
    assert main(["web_video", f"data={corpus}", f"out={tmp_path / 'web'}", "size=[96,64]"]) == 0
    index = load_index(tmp_path / "web" / "manifest.jsonl")
    old = load_index(corpus)
    assert index["id"][:] == old["id"][:] and index["narrations"][:] == old["narrations"][:]
    found, before = probe(index["video"][0]), probe(old["video"][0])
    assert (found.width, found.height, found.fps, found.has_audio) == (96, 64, 25.0, True)
    assert found.duration == pytest.approx(before.duration, abs=0.3)
    with av.open(index["video"][0]) as file:
        keys = [packet.is_keyframe for packet in file.demux(video=0) if packet.size]
    assert sum(keys) < len(keys) / 50
    assert main(["web_video", f"data={corpus}", f"out={tmp_path / 'web'}"]) == 2  # it is there
