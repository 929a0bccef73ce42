"""AudioSet's layout, from the official tables to a run that trains on sound and pictures alone."""

import json
from pathlib import Path

import pytest

from recipes import config as configuration
from recipes.data.index import load_index
from recipes.evaluate import main as evaluate
from recipes.pretrain import pretrain
from recipes.training import metrics
from tests.recipes import media
from tests.recipes.conftest import DEMO, TINY

HEADER = (
    "# Segments csv created Sun Mar  5 10:54:31 2017\n"
    "# num_ytids=22160, num_segs=22160, num_unique_labels=527, num_positive_labels=52882\n"
    "# YTID, start_seconds, end_seconds, positive_labels\n"
)
LABELS = '"/m/09x0r,/t/dd00088"'


def table(root: Path, name: str, *segments: str) -> None:
    root.mkdir(exist_ok=True)
    (root / f"{name}_segments.csv").write_text(HEADER + "".join(f"{segment}\n" for segment in segments))


def touch(root: Path, *names: str) -> None:
    (root / "videos").mkdir(parents=True, exist_ok=True)
    for name in names:
        (root / "videos" / name).write_bytes(b"video")


def test_the_tables_name_splits_and_parts_of_videos(tmp_path: Path) -> None:
    table(tmp_path, "balanced_train", f"--4gqARaEJE, 0.000, 10.000, {LABELS}", f"gone, 5.000, 15.000, {LABELS}")
    table(tmp_path, "unbalanced_train", f"_a_30, 30.000, 40.000, {LABELS}")
    table(tmp_path, "eval", f"both, 20.000, 28.500, {LABELS}")
    touch(tmp_path, "--4gqARaEJE.mp4", "_a_30.webm", "both.mp4", "both_20.mp4")
    with pytest.warns(UserWarning, match="1 of 4 segments have no file; left out"):
        index = load_index(tmp_path)
    videos = tmp_path / "videos"
    assert [tuple(row.values()) for row in index] == [
        ("--4gqARaEJE", str(videos / "--4gqARaEJE.mp4"), "train", None, 0.0, 10.0, None, []),
        ("_a_30", str(videos / "_a_30.webm"), "train", None, 30.0, 40.0, None, []),
        ("both", str(videos / "both_20.mp4"), "test", None, None, None, None, []),
    ]


@pytest.mark.parametrize("stem", ["abc_30", "abc_000030", "abc_30000", "abc_30_40", "abc_30000_40000"])
def test_a_part_that_is_cut_out_is_known_by_its_name(tmp_path: Path, stem: str) -> None:
    table(tmp_path, "eval", f"abc, 30.000, 40.000, {LABELS}")
    touch(tmp_path, f"{stem}.mp4", "abc_3.mp4")
    (row,) = load_index(tmp_path)
    assert (Path(row["video"]).stem, row["start"], row["end"]) == (stem, None, None)


@pytest.mark.parametrize(
    "segment", ["abc, 1.0, 2.0", f"abc, 2.0, 2.0, {LABELS}", f"abc, soon, 2.0, {LABELS}", "abc, 1.0, 2.0, /m/1,/m/2"]
)
def test_a_wrong_segment_is_named_by_file_and_line(tmp_path: Path, segment: str) -> None:
    table(tmp_path, "eval", f"abc, 30.000, 40.000, {LABELS}", segment)
    touch(tmp_path, "abc.mp4")
    with pytest.raises(ValueError, match=r"eval_segments\.csv, line 5: expected YTID, start_seconds"):
        load_index(tmp_path)


def test_not_one_video(tmp_path: Path) -> None:
    table(tmp_path, "eval", f"abc, 30.000, 40.000, {LABELS}")
    with pytest.raises(FileNotFoundError, match=r"not one of the 1 segments .* abc\.mp4 or abc_30\.mp4"):
        load_index(tmp_path)


@pytest.mark.slow
def test_a_run_without_any_text_trains_evaluates_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = tmp_path / "audioset"
    for name, count, seconds in (("balanced_train", 6, 4.0), ("eval", 4, 4.5)):  # other bytes: nothing leaks
        table(root, name, *(f"{name}{i}, 1.000, 3.000, {LABELS}" for i in range(count)))
        for i in range(count):
            media.write(root / f"videos/{name}{i}.mp4", seconds, size=(48, 32), audio=(name, i) != ("eval", 3))
    where = [f"run.dir={tmp_path / 'runs'}", f"data.manifest={root}"]
    config = configuration.load(DEMO, [*TINY, *where, "gram.probe=[layers]", "gram.probe_every=3"])
    results = pretrain(config)
    assert list(results["trained"]) == ["audio->video"] and results["trained"]["audio->video"]["pairs"] == 3
    rows = metrics.read_metrics(config.folder)
    assert all(row["loss_va"] > 0 and row["loss_vt"] == 0 and row["kept"] == 1 for row in rows)
    assert all("agreement_mean" not in row and row["skipped_steps"] == 0 for row in rows)
    page = (config.folder / "report.html").read_text()
    assert "audio-&gt;video" in page and "What a caption finds" not in page and "nan" not in page

    capsys.readouterr()
    assert evaluate(["retrieval", f"checkpoint={config.folder}", f"out={tmp_path / 'out.json'}"]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["figures"] == results["trained"]
