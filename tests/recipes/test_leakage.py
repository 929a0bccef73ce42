"""An evaluation on what was trained on is refused, whatever became of the files; a clean one is not."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from recipes.data import identity, pack
from recipes.data.identity import content_of, seen, youtube_id
from recipes.data.index import load_index
from recipes.evaluate import main
from recipes.evaluation import leakage
from recipes.pretrain import pretrain
from recipes.training import checkpoint as checkpoints
from tests.recipes import media, shards

YOUTUBE = ("9GX8f5EwwE4", "GLd3aX16zBg", "xHr8X2Wpmno")


def manifest(folder: Path, *rows: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(json.dumps({"text": "a red ball rolls"} | row) for row in rows), encoding="utf-8")
    return path


def recognised(trained: identity.Seen, path: Path, origins: dict[str, str] | None = None) -> list[str]:
    """How leakage knows each clip of a manifest; empty where it does not."""
    index = load_index(path)
    found = leakage.recognised(index, trained, origins)
    return [found.get(name, "") for name in index["id"]]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of three different videos with common names."""
    root = tmp_path_factory.mktemp("clips")
    for i in range(3):
        media.write(root / f"{i:04d}.mp4", seconds=1.0 + i, size=(48, 32))
    return manifest(root, *({"video": f"{i:04d}.mp4"} for i in range(3)))


def test_the_same_bytes_are_known_by_any_name_and_in_any_part(clips: Path, tmp_path: Path) -> None:
    trained = seen(load_index(clips).select([0, 1]))
    for name, source in (("renamed.mp4", "0000.mp4"), ("linked.webm", "0001.mp4"), ("0000.mp4", "0002.mp4")):
        shutil.copy(clips.parent / source, tmp_path / name)
    path = manifest(
        tmp_path, {"video": "renamed.mp4"}, {"video": "linked.webm", "start": 0.5, "end": 1.0}, {"video": "0000.mp4"}
    )
    assert recognised(trained, path) == ["a file with the same bytes"] * 2 + [
        ""
    ]  # the last: a name that was trained on


def test_the_same_bytes_are_known_in_a_shard(clips: Path, tmp_path: Path) -> None:
    assert pack.main([f"data={clips}", f"out={tmp_path / 'shards'}", "clips=2"]) == 0
    packed, plain = seen(load_index(tmp_path / "shards")), seen(load_index(clips))
    assert len(plain.contents) == 3 and np.array_equal(packed.contents, plain.contents)


def test_records_of_features_are_known_in_other_shards(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    videos = [rng.integers(0, 256, (5, 1024), np.uint8) for _ in range(3)]
    one, two = (shards.example(f"v{i}", videos[i], None) for i in (0, 1))
    shards.write(tmp_path / "a/train0.tfrecord", one, two)
    shards.write(tmp_path / "b/test0.tfrecord", shards.example("v2", videos[2], None), two)
    trained = seen(load_index(tmp_path / "a"))
    assert recognised(trained, tmp_path / "b") == ["", "a file with the same bytes"]


def test_a_video_on_youtube_is_known_in_other_cuts_and_sizes(tmp_path: Path) -> None:
    """HowTo100M's whole videos against segments, other downloads, and clips whose origin a data set tells."""
    for i, name in enumerate(YOUTUBE):
        media.write(tmp_path / f"train/{name}.mp4", seconds=1.0 + i / 2, size=(48, 32))
    trained = seen(load_index(manifest(tmp_path / "train", *({"video": f"{name}.mp4"} for name in YOUTUBE[:2]))))
    names = (f"{YOUTUBE[0]}_30", f"Dinner [{YOUTUBE[1]}]", "video7010", f"Dinner-{YOUTUBE[2]}", "plain")
    for name in names:
        media.write(tmp_path / f"test/{name}.mp4", seconds=0.6, size=(64, 48))
    test = manifest(tmp_path / "test", *({"video": f"{name}.mp4"} for name in names))
    url = {"video7010": f"https://www.youtube.com/watch?v={YOUTUBE[0]}&t=10"}
    same = "a video of the same YouTube id or URL"
    assert recognised(trained, test, url) == [same, same, same, "", ""]
    assert recognised(trained, test)[2] == ""


def test_what_is_behind_a_url_is_known_by_it(tmp_path: Path) -> None:
    trained = seen(load_index(manifest(tmp_path / "a", {"video": "https://example.org/a.mp4"})))
    assert len(trained.contents) == 0
    test = manifest(tmp_path / "b", {"video": "https://example.org/a.mp4"}, {"video": "https://example.org/b.mp4"})
    assert [bool(reason) for reason in recognised(trained, test)] == [True, False]


@pytest.mark.parametrize(
    "name", ["video_00004", "0000", "v_ApplyEyeMakeup_g08_c01", "clips/IMG_2020_08", "9GX8f5EwwE3"]
)
def test_names_that_are_no_ids(name: str) -> None:
    assert youtube_id(name) is None


def test_a_file_that_cannot_be_read_has_no_bytes_to_compare(tmp_path: Path) -> None:
    assert content_of(str(tmp_path / "gone.mp4")) is None and content_of("https://example.org/a.mp4") is None


def test_files_that_begin_and_end_alike_are_compared_whole(tmp_path: Path) -> None:
    """Recordings of one length between silences; a hit by length and ends alone was a refusal."""
    silence, rng = bytes(identity.BLOCK), np.random.default_rng(0)
    for name in ("trained", "also", "other"):
        (tmp_path / f"{name}.wav").write_bytes(silence + rng.bytes(5000) + silence)
    shutil.copy(tmp_path / "also.wav", tmp_path / "copy.wav")
    index = load_index(manifest(tmp_path / "a", *({"video": f"../{name}.wav"} for name in ("trained", "also"))))
    trained = seen(index)
    assert len(set(trained.contents.tolist())) == 1 and trained.rows.tolist() == [0, 1]
    test = load_index(manifest(tmp_path / "b", *({"video": f"../{name}.wav"} for name in ("other", "copy"))))
    names = test["id"][:]
    assert leakage.recognised(test, trained, index=lambda: index) == {names[1]: "a file with the same bytes"}
    assert set(leakage.recognised(test, trained)) == set(names)  # nothing to compare with: refused all the same
    (tmp_path / "trained.wav").unlink()
    assert set(leakage.recognised(test, trained, index=lambda: index)) == set(names)


# ----------------------------------------------------------------------------------------------------- the command


def test_a_leaky_evaluation_is_refused_and_marked_where_it_is_wanted(
    checkpoint: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    trained, held_out = sorted((corpus / "videos").iterdir()), load_index(corpus / "test.jsonl")["video"][:]
    trained = [video for video in trained if str(video) not in held_out]
    (tmp_path / "clips").mkdir()
    shutil.copy(trained[0], tmp_path / "clips/renamed.mp4")
    shutil.copy(held_out[0], tmp_path / "clips/clean.mp4")
    rows = [{"video": "renamed.mp4"}, {"video": "clean.mp4"}, {"id": "linked", "video": str(trained[1])}]
    leaky, out = manifest(tmp_path / "clips", *rows), tmp_path / "out.json"
    command = ["retrieval", f"checkpoint={checkpoint}", f"out={out}"]

    assert main([*command, f"data={leaky}"]) == 2
    error = capsys.readouterr().err
    assert re.search(r"2 of 3 clips to evaluate on are of videos that .*step_00000002 was trained on", error)
    assert "renamed: a file with the same bytes" in error and "linked: " in error and "clean" not in error
    assert "allow_leakage=true" in error and not out.exists()

    assert main([*command, f"data={leaky}", "allow_leakage=true"]) == 0
    marked = json.loads(out.read_text())["leakage"]
    assert marked["checked"] and set(marked["clips"]) == {"renamed", "linked"}
    table = capsys.readouterr().out
    assert "(**leaky**: trained on 2 of 3 clips) |" in table and "LEAKY" in table

    clean = manifest(tmp_path / "clips", {"video": "clean.mp4"})
    assert main([*command, f"data={clean}"]) == 0
    assert json.loads(out.read_text())["leakage"] == {"checked": True, "total": 1, "clips": {}}
    assert "leaky**" not in capsys.readouterr().out


def test_msrvtt_knows_its_videos_on_youtube(checkpoint: Path, corpus: Path, tmp_path: Path, capsys) -> None:
    """The ids of the procedural corpus look like YouTube's; one of those trained on is what a clip was cut from."""
    trained = [row["id"] for row in load_index(corpus) if row["split"] != "test"]
    name = next(name for name in trained if youtube_id(name))
    media.write(tmp_path / "videos/video7010.mp4", seconds=2.0, size=(48, 32))
    (tmp_path / "MSRVTT_JSFUSION_test.csv").write_text(
        "key,vid_key,video_id,sentence\nret0,msr7010,video7010,a red ball\n"
    )
    command = ["retrieval", f"checkpoint={checkpoint}", f"data={tmp_path}"]
    assert main(command) == 0
    about = {"video_id": "video7010", "url": f"https://www.youtube.com/watch?v={name}", "start time": 1.0}
    (tmp_path / "MSRVTT_data.json").write_text(json.dumps({"videos": [about], "sentences": []}))
    assert main(command) == 2
    assert "video7010: a video of the same YouTube id or URL" in capsys.readouterr().err


def test_a_checkpoint_that_does_not_say_what_it_was_trained_on(checkpoint, tmp_path, capsys, caplog) -> None:
    old = shutil.copytree(checkpoints.latest(checkpoint), tmp_path / "old")
    (old / identity.FILE).unlink()
    (old / checkpoints.CHECKSUMS).unlink()
    assert main(["retrieval", f"checkpoint={old}"]) == 0
    assert "cannot be checked" in caplog.text
    assert "does not say what it was trained on" in capsys.readouterr().out
    (old / identity.FILE).write_bytes(b"not one")
    assert main(["retrieval", f"checkpoint={old}"]) == 2
    assert "trained_on.safetensors: damaged" in capsys.readouterr().err


def test_a_run_warns_of_held_out_clips_that_it_trains_on(tiny, corpus: Path, tmp_path: Path, caplog) -> None:
    held_out = set(load_index(corpus / "test.jsonl")["video"])
    trained = next(video for video in sorted((corpus / "videos").iterdir()) if str(video) not in held_out)
    shutil.copy(trained, tmp_path / "copy.mp4")
    test = manifest(tmp_path, {"video": "copy.mp4"}, {"video": next(iter(held_out))})
    pretrain(tiny(f"data.test={test}", "train.steps=1"))
    assert "1 of 2 held-out videos are trained on under another name, for example copy" in caplog.text


def test_every_checkpoint_knows_also_after_a_resumption(tiny, crash) -> None:
    config = tiny()
    crash(config)
    pretrain(config, resume=True)
    expected = seen(load_index(config.data.manifest))
    for number in (3, 6):
        found = identity.load(config.folder / f"checkpoints/step_{number:08d}" / identity.FILE)
        assert len(found.contents) == 6
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
