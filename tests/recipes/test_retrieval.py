"""Retrieval from media in the official layouts to a table; windows averaged, against one window at a time."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from recipes.data.clips import Clip, EvalClips, collate
from recipes.data.index import load_index
from recipes.data.skipped import Skipped
from recipes.evaluate import main
from recipes.evaluation.embedding import embed
from recipes.evaluation.retrieval import retrieve
from recipes.model.build import model_inputs
from recipes.pretrain import pretrain
from recipes.restore import restore
from recipes.training.checkpoint import CHECKSUMS, latest
from tests.recipes import media, shards
from tests.recipes.test_youtube8m import run as features_run

BACKWARDS = {"id": 3, "segment": [5, 2], "sentence": "x"}
SENTENCES = ["a ball rolls", 'a man says "hello", twice', "two stars", "a cat plays", "it is gone"]


@pytest.fixture(scope="module")
def msrvtt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MSR-VTT's layout: the fourth clip is cut off after its header, the fifth is missing."""
    root = tmp_path_factory.mktemp("msrvtt")
    quoted = ['"{}"'.format(sentence.replace('"', '""')) for sentence in SENTENCES]
    rows = [f"ret{i},msr{7010 + i},video{7010 + i},{quoted[i]}\n" for i in range(5)]
    (root / "MSRVTT_JSFUSION_test.csv").write_text("key,vid_key,video_id,sentence\n" + "".join(rows))
    for i in range(4):
        media.write(root / f"TestVideo/video{7010 + i}.mp4", 3.0 + i, size=(48, 32), audio=i != 1, header_first=True)
    media.truncate(root / "TestVideo/video7013.mp4", 0.6)
    return root


@pytest.fixture(scope="module")
def youcook2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """YouCook2's layout: two videos to validate on, one of which is missing, and one to train on."""
    root = tmp_path_factory.mktemp("youcook2")
    subsets = {"9GX8f5EwwE4": "validation", "gone4gone4A": "validation", "GLd3aX16zBg": "training"}
    segments = [
        {"segment": [0, 2], "id": 0, "sentence": "cut the onion"}, {"segment": [2, 6], "id": 1, "sentence": "fry it"}
    ]  # fmt: skip
    database = {
        name: {"duration": 6.0, "subset": subset, "recipe_type": "212", "annotations": segments,
               "video_url": f"https://www.youtube.com/watch?v={name}"}
        for name, subset in subsets.items()
    }  # fmt: skip
    (root / "youcookii_annotations_trainval.json").write_text(json.dumps({"database": database}))
    for name in ("9GX8f5EwwE4", "GLd3aX16zBg"):
        media.write(root / f"raw_videos/{subsets[name]}/212/{name}.mkv", seconds=6.0, size=(48, 32))
    return root


def test_the_rows_of_msrvtt(msrvtt: Path) -> None:
    with pytest.warns(UserWarning, match="1 of 5 clips have no file"):
        index = load_index(msrvtt)
    assert index["id"][:] == [f"video{7010 + i}" for i in range(4)] and set(index["split"]) == {"test"}
    assert index["video"][0] == str(msrvtt / "TestVideo/video7010.mp4")
    assert [row["narrations"][0]["text"] for row in index] == SENTENCES[:4]


def test_the_rows_of_youcook2(youcook2: Path) -> None:
    with pytest.warns(UserWarning, match="2 of 6 clips have no file"):
        index = load_index(youcook2)
    assert index["id"][:] == ["9GX8f5EwwE4:0", "9GX8f5EwwE4:1", "GLd3aX16zBg:0", "GLd3aX16zBg:1"]
    assert index["split"][:] == ["validation"] * 2 + ["training"] * 2
    assert [(row["start"], row["end"], row["narrations"][0]["text"]) for row in index][:2] == [
        (0.0, 2.0, "cut the onion"), (2.0, 6.0, "fry it")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("MSRVTT_JSFUSION_test.csv", "key,sentence\nret0,x\n", "line 1: expected the columns video_id, sentence"),
        ("MSRVTT_JSFUSION_test.csv", "key,vid_key,video_id,sentence\nret0,m,v,\n", "line 2: expected a video_id and a"),
        ("youcookii_annotations_trainval.json", "[]", 'expected {"database"'),
        ("youcookii_annotations_trainval.json", '{"database": {"abc": {"subset": "training"}}}', "video 'abc': expect"),
        (
            "youcookii_annotations_trainval.json",
            json.dumps({"database": {"abc": {"subset": "x", "annotations": [BACKWARDS]}}}),
            "segment 3: expected 'start' and 'end' in seconds",
        ),
    ],
)  # fmt: skip
def test_a_wrong_table_is_named(tmp_path: Path, file: str, text: str, complaint: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=file) as raised:
        load_index(tmp_path)
    assert complaint in str(raised.value)


def test_without_any_video_it_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "MSRVTT_JSFUSION_test.csv").write_text("key,vid_key,video_id,sentence\nret0,msr1,video1,a cat\n")
    with pytest.raises(FileNotFoundError, match=r"not one of its 1 clips has a file.* like video1\.mp4"):
        load_index(tmp_path)


@pytest.mark.filterwarnings("ignore:.*clips have no file")
def test_windows_are_averaged(checkpoint: Path, youcook2: Path) -> None:
    """Against each window alone: one clip of one window at a time, means by hand."""
    _, config, tokenizer, modules = restore(checkpoint)
    modules.eval()
    index = load_index(youcook2)
    clips = EvalClips(index, tokenizer, config.clip, 4)
    found = embed(modules, clips, config.evaluate.batch_size, config.data)
    assert found.starts.shape == (len(clips), 4) and not found.skipped
    ends = dict(zip(index["id"], zip(index["start"], index["end"], strict=True), strict=True))
    for item, starts in zip(found.items, found.starts, strict=True):
        first, last = ends[clips.place(item)[0]["id"]]
        assert starts.min() >= first and starts.max() + config.clip.seconds <= last + 1e-6
    for i, item in enumerate(found.items):
        singles = [clips[item, window] for window in range(4)]
        assert found.starts[i].tolist() == [single.start for single in singles] == sorted({s.start for s in singles})
        with torch.no_grad():
            encoded = [modules["model"](**model_inputs(collate([s]), torch.device("cpu"))) for s in singles]
            spaces = [modules["objective"].project(e) for e in encoded]
        for name, space, side in (("va_video", "va", 0), ("va_audio", "va", 1), ("vt_video", "vt", 0)):
            mean = sum(s[space][side][0] for s in spaces) / 4
            assert torch.allclose(found.vectors[name][i], mean, atol=1e-5)
        assert torch.allclose(found.vectors["vt_text"][i], spaces[0]["vt"][1][0, 0], atol=1e-5)
        assert torch.allclose(found.vectors["model_video"][i], sum(e["video"][0] for e in encoded) / 4, atol=1e-5)


def test_of_a_clip_with_a_broken_window_there_is_nothing(checkpoint: Path, msrvtt: Path, tmp_path: Path) -> None:
    media.write(tmp_path / "good.mp4", seconds=4.0, size=(48, 32))
    media.write(tmp_path / "cut.mp4", seconds=8.0, size=(48, 32), header_first=True)
    media.truncate(tmp_path / "cut.mp4", 0.6)
    rows = [{"video": name, "text": "a red ball"} for name in ("cut.mp4", "good.mp4")]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    _, config, tokenizer, modules = restore(checkpoint)
    clips = EvalClips(load_index(tmp_path / "m.jsonl"), tokenizer, config.clip, 4)
    assert {type(clips[0, window]) for window in range(4)} == {Clip, Skipped}
    found = embed(modules, clips, config.evaluate.batch_size, config.data)
    assert found.items == [1] and [skipped.id for skipped in found.skipped] == ["cut"]


def test_sound_is_averaged_over_the_windows_that_have_it(checkpoint: Path, tmp_path: Path) -> None:
    """A file whose sound ends long before its pictures: only the first of the windows has any."""
    media.write(tmp_path / "a.mp4", seconds=8.0, size=(48, 32), audio_seconds=2.0)
    (tmp_path / "m.jsonl").write_text(json.dumps({"video": "a.mp4", "text": "a red ball"}))
    _, config, tokenizer, modules = restore(checkpoint)
    clips = EvalClips(load_index(tmp_path / "m.jsonl"), tokenizer, config.clip, 4)
    heard = [clips[0, window].has_audio for window in range(4)]
    assert heard == [True, False, False, False]
    found, first = embed(modules, clips, config.evaluate.batch_size, config.data), collate([clips[0, 0]])
    modules.eval()
    with torch.no_grad():
        alone = modules["objective"].project(modules["model"](**model_inputs(first, torch.device("cpu"))))
    assert found.audio_valid.tolist() == [True]
    assert torch.allclose(found.vectors["va_audio"], alone["va"][1], atol=1e-5)


def test_windows_of_features_are_spread_too(tmp_path: Path, checkpoint: Path) -> None:
    _, config, tokenizer, _ = restore(checkpoint)
    seconds = 40
    rgb = np.repeat(np.arange(seconds, dtype=np.uint8)[:, None], 1024, 1)
    shards.write(tmp_path / "test0.tfrecord", shards.example("a", rgb, rgb[:, :128]))
    clips = EvalClips(load_index(tmp_path), tokenizer, replace(config.clip, inputs="features", fps=1.0), 4)
    assert [clips[0, window].start for window in range(4)] == [3, 13, 23, 33]


@pytest.mark.filterwarnings("ignore:.*clips have no file")
@pytest.mark.parametrize("name", ["msrvtt", "youcook2"])
def test_a_command_evaluates_an_official_set(checkpoint, name, request, tmp_path, capsys) -> None:
    root, out = request.getfixturevalue(name), tmp_path / "out.json"
    assert main(["retrieval", f"checkpoint={checkpoint}", f"data={root}", f"out={out}"]) == 0
    printed, result = capsys.readouterr(), json.loads(out.read_text())
    missing, skipped, reported = {"msrvtt": (1, 1, 23.6), "youcook2": (2, 0, 40.6)}[name]
    assert result["counts"]["missing"] == missing and result["counts"]["skipped"] == skipped
    assert len(result["skipped"]) == skipped and f"missing: {missing};" in printed.out
    assert result["protocol"]["windows"] == 4 and result["checkpoint"]["step"] == 2
    assert result["protocol"]["split"] == {"msrvtt": "test", "youcook2": "validation"}[name]
    assert set(result["figures"]) == {"text->video", "video->text", "audio->video"}
    assert f"| {reported} |" in printed.out and "arXiv:2104.11178" in printed.out
    assert out.with_suffix(".md").read_text().strip() == printed.out.strip()


def test_directions_are_searched_by_hand(checkpoint: Path, corpus: Path) -> None:
    """R@1 and ranks of each direction from plain loops over cosines of single vectors."""
    _, config, tokenizer, modules = restore(checkpoint)
    clips = EvalClips(load_index(corpus / "test.jsonl"), tokenizer, config.clip)
    found = embed(modules, clips, config.evaluate.batch_size, config.data)
    results = retrieve(found, clips)
    sides = {
        "text->video": ("vt_text", "vt_video"), "video->text": ("vt_video", "vt_text"),
        "audio->video": ("va_audio", "va_video"),
    }  # fmt: skip
    assert list(results) == list(sides)
    for direction, (query, item) in sides.items():
        ranks = []
        for i, q in enumerate(found.vectors[query].double()):
            cosines = [float(F.cosine_similarity(q, x, dim=0)) for x in found.vectors[item].double()]
            ranks.append(sum(c >= cosines[i] - 1e-6 for c in cosines))
        figures = results[direction]
        assert figures["R@5"] == pytest.approx(np.mean(np.array(ranks) <= 5)), direction
        assert figures["median_rank"] == np.median(ranks) and figures["mean_rank"] == pytest.approx(np.mean(ranks))


def test_the_limit_is_of_what_the_run_holds_out(checkpoint: Path, corpus: Path, tmp_path: Path, capsys) -> None:
    limited = shutil.copytree(latest(checkpoint), tmp_path / "limited")
    text = (limited / "config.yaml").read_text()
    (limited / "config.yaml").write_text(text.replace("limit: 4096", "limit: 3"))
    (limited / CHECKSUMS).unlink()  # a changed file is refused
    assert main(["retrieval", f"checkpoint={limited}"]) == 0
    assert "clips: 3, skipped: 0, missing: 0" in capsys.readouterr().out
    assert main(["retrieval", f"checkpoint={limited}", f"data={corpus / 'test.jsonl'}"]) == 0
    assert "clips: 3," not in capsys.readouterr().out


def test_media_are_nothing_for_a_model_of_features(tmp_path: Path, corpus: Path, capsys) -> None:
    config = features_run(tmp_path, texts=False)
    pretrain(config)
    assert main(["retrieval", f"checkpoint={config.folder}", f"data={corpus / 'test.jsonl'}"]) == 2
    assert "expected the features of a video, SHARD#OFFSET" in capsys.readouterr().err


def test_a_dry_run_counts_the_clips(checkpoint: Path, corpus: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "new" / "out.json"
    assert main(["retrieval", "--dry-run", f"checkpoint={checkpoint}", f"out={out}", "windows=2"]) == 0
    assert re.search(r"held out of .*: \d+ clips, 2 window\(s\) each; missing: 0; no clip is", capsys.readouterr().out)
    assert main(["probe", "--dry-run", f"checkpoint={checkpoint}", f"data={corpus / 'shapes.jsonl'}"]) == 0
    assert "would be probed: video, 4 window(s) of each clip; 8 classes" in capsys.readouterr().out
    assert not out.parent.exists()
    for flags in ([], ["--dry-run"]):
        assert main(["retrieval", *flags, f"checkpoint={checkpoint}", f"out={Path(__file__) / 'out.json'}"]) == 2
        assert "no folder" in capsys.readouterr().err


def test_a_split_that_is_not_there(checkpoint: Path, corpus: Path, capsys) -> None:
    assert main(["retrieval", f"checkpoint={checkpoint}", "split=test"]) == 2
    assert "split=test: what the run held out has no splits" in capsys.readouterr().err
    held_out = f"data={corpus / 'test.jsonl'}"
    assert main(["retrieval", f"checkpoint={checkpoint}", held_out, "split=val"]) == 2
    assert "no row has split 'val'; rows by split: test: 4" in capsys.readouterr().err
    assert main(["retrieval", f"checkpoint={checkpoint}", "windows=0"]) == 2
    assert "windows=0 must be at least 1" in capsys.readouterr().err
