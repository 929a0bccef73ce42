"""Detectors of texts that do not belong: the figures, the join with the truth, the permuted data set."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.data.index import load_index
from recipes.data.permute import Permutation, deranged, main, permute
from recipes.figures.command import main as figures
from recipes.scoring import detection, table


def write(folder, aligned, cosines, similarities):
    """A table of scores and its truth: two clips to a video."""
    rows = [
        {
            "clip": i, "id": f"v{i // 2}", "video": "x", "narration": i % 2, "caption": f"text {i}", "start": 0.0,
            "end": 1.0, "cosine": c, "norm_va": 1.0, "norm_vt": 2.0 + i, "loss_va": 0.5, "loss_vt": -s,
            "similarity_va": 0.1, "similarity_vt": s, "error": None,
        }
        for i, (c, s) in enumerate(zip(cosines, similarities, strict=True))
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema=table.SCHEMA), folder / "s.parquet")
    truth = [{"video_id": f"v{i // 2}", "text": f"text {i}", "aligned": bool(a)} for i, a in enumerate(aligned)]
    (folder / "truth.jsonl").write_text("".join(json.dumps(t) + "\n" for t in truth))
    return folder / "s.parquet", folder / "truth.jsonl"


def test_a_perfect_detector_and_a_useless_one(tmp_path):
    rng = np.random.default_rng(0)
    aligned = rng.random(400) < 0.3
    judged = detection.judge(*write(tmp_path, aligned, rng.uniform(-1, 1, 400), aligned - 0.5))
    assert list(judged) == ["video-text"]
    by_name, clips = judged["video-text"]["detectors"], judged["video-text"]["clips"]
    assert clips == 400 and judged["video-text"]["aligned"] == pytest.approx(aligned.mean())
    assert set(judged["video-text"]["left_out"].values()) == {0}
    assert by_name["video-text similarity"] == {"auroc": 1.0, "interval": (1.0, 1.0), "top": 1.0, "bottom": 0.0}
    assert by_name["video-text loss, small"]["auroc"] == 1.0
    low, high = by_name["cosine"]["interval"]
    assert low < 0.5 < high and high - low < 0.2
    assert "| video-text similarity | 1.000 | 1.000 to 1.000 | 100% | 0% |" in detection.markdown({"t": judged})


def test_clips_without_a_cosine_are_left_out(tmp_path):
    scores, truth = write(tmp_path, [1, 0, 1, 0, 1, 0], [0.5, 0.1, None, None, 0.4, 0.2], [0.5] * 6)
    clips = detection.joined(scores, truth)["video-text"]
    assert clips.aligned.tolist() == [True, False, True, False] and clips.videos.tolist() == ["v0", "v0", "v2", "v2"]
    assert clips.figures["norm_vt"].tolist() == [2, 3, 6, 7]
    assert clips.left_out["rows that lack a figure"] == 2


def test_the_command_judges_and_writes(tmp_path, capsys):
    scores, truth = write(tmp_path, [1, 0] * 10, [0.5, 0.1] * 10, [0.5, 0.4] * 10)
    command = ["detection", f"scores=[{scores}]", f"truth={truth}", f"out={tmp_path / 'out'}"]
    assert figures([*command, "--dry-run"]) == 0 and not (tmp_path / "out").exists()
    assert "20 clips, 10 texts belong" in capsys.readouterr().out
    assert figures(command) == 0
    assert "| cosine | 1.000 |" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"detection.json", "detection.md"}


def test_a_truth_of_other_texts_is_refused(tmp_path):
    scores, truth = write(tmp_path, [1, 0], [0.5, 0.1], [0.5, 0.4])
    truth.write_text(truth.read_text().replace("text 1", "another"))
    with pytest.raises(ValueError, match=r"expected narration 1 of v0 to be 'text 1'.*found 'another'"):
        detection.judge(scores, truth)
    scores, truth = write(tmp_path, [1, 1], [0.5, 0.1], [0.5, 0.4])
    with pytest.raises(ValueError, match="of 2 texts 2 belong"):
        detection.judge(scores, truth)


@given(seed=st.integers(0, 10_000), number=st.integers(3, 60), kinds=st.integers(3, 60))
@settings(max_examples=100, deadline=None)
def test_a_derangement_leaves_no_text_in_its_place(seed, number, kinds):
    rng = np.random.default_rng(seed)
    texts = [str(i % kinds) for i in range(number)]
    if max(map(texts.count, texts)) > number // 2:
        return
    given_ = deranged(texts, rng)
    assert sorted(given_) == sorted(texts) and all(a != b for a, b in zip(texts, given_, strict=True))


def test_what_cannot_be_exchanged_is_said():
    with pytest.raises(ValueError, match="too frequent"):
        deranged(["a", "a", "a", "b"], np.random.default_rng(0))


def test_a_permuted_data_set_tells_the_truth_elsewhere(tmp_path):
    (tmp_path / "videos").mkdir()
    for i in range(30):
        (tmp_path / "videos" / f"{i}.mp4").write_bytes(b"x")
    rows = [
        {"video": f"videos/{i}.mp4", "text": f"thing {i % 12}", "split": "test" if i % 2 else "train"}
        for i in range(30)
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "permuted"
    assert main([f"data={tmp_path / 'm.jsonl'}", f"out={out}"]) == 0
    index = load_index(out / "manifest.jsonl")
    truth = [json.loads(line) for line in (out / "truth.jsonl").read_text().splitlines()]
    texts = [row["narrations"][0]["text"] for row in index]
    assert index["id"] == [f"videos/{i}" for i in range(30)] and index["split"] == [row["split"] for row in rows]
    assert texts == [t["text"] for t in truth]
    assert [a == f"thing {i % 12}" for i, a in enumerate(texts)] == [t["aligned"] for t in truth]
    assert sum(not t["aligned"] for t in truth) == 10
    assert "aligned" not in (out / "manifest.jsonl").read_text()
    again = permute(Permutation(str(tmp_path / "m.jsonl"), tmp_path / "again"))
    assert again.read_text() == (out / "manifest.jsonl").read_text()
    assert main([f"data={tmp_path / 'm.jsonl'}", f"out={out}"]) == 2  # it is there
