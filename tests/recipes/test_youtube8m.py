"""YouTube-8M's frame features: official shards, written by the test byte by byte, read and trained on."""

import json
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from recipes import config as configuration
from recipes.config import AugmentConfig, ClipFormat
from recipes.data import vocabulary
from recipes.data.clips import EvalClips, TrainClips, collate
from recipes.data.decode import BrokenClip
from recipes.data.index import load_index
from recipes.data.layouts.youtube8m import read_features
from recipes.data.skipped import Skipped
from recipes.errors import ConfigError
from recipes.evaluate import main as evaluate
from recipes.evaluation.plan import plan
from recipes.pretrain import pretrain
from recipes.score import ScoreKeys, prepare
from recipes.training import metrics
from tests.recipes import media, shards
from tests.recipes.conftest import DEMO, TINY

CONFIG = Path(__file__).parents[2] / "recipes" / "configs" / "youtube8m_features.yaml"
FMT = ClipFormat(inputs="features", frames=4, fps=1.0, narrations=2, words=5)


def video(seconds: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of which each second's first byte is its number."""
    rng = np.random.default_rng(seed)
    rgb, audio = (rng.integers(0, 256, (seconds, width), np.uint8) for width in (1024, 128))
    rgb[:, 0] = audio[:, 0] = np.arange(seconds)
    return rgb, audio


def numbers(features: np.ndarray) -> list[int]:
    """The bytes behind the first number of each second, by the formula of the official reader."""
    return [round((float(x) + 2 - 4 / 512) * 255 / 4) for x in features[:, 0]]


def test_the_checksum_is_the_standards() -> None:
    assert google_crc32c.value(b"123456789") == shards.crc32c(b"123456789") == 0xE3069283


def test_shards_are_indexed_and_read_at_random(tmp_path: Path) -> None:
    videos = {name: video(seconds, seed) for seed, (name, seconds) in enumerate({"aaaa": 7, "bbbb": 300}.items())}
    first, second = shards.write(
        tmp_path / "train00.tfrecord", *(shards.example(name, *features) for name, features in videos.items())
    )
    shards.write(tmp_path / "validate0a.tfrecord", shards.example("cccc", video(3)[0], None))
    (tmp_path / "texts.jsonl").write_text('{"id": "bbbb", "text": "a cat"}\n{"id": "else", "text": "x"}\n')
    index = load_index(tmp_path)
    assert index["id"][:] == ["aaaa", "bbbb", "cccc"] and index["split"][:] == ["train", "train", "validate"]
    assert index["video"][:2] == [f"{tmp_path}/train00.tfrecord#{offset}" for offset in (first, second)]
    assert [[n["text"] for n in row] for row in index["narrations"]] == [[], ["a cat"], []]
    for row, (rgb, audio) in zip(reversed(index["video"][:2]), reversed(videos.values()), strict=True):
        found = read_features(row)
        assert (found.rgb == rgb).all() and (found.audio == audio).all()
    assert read_features(index["video"][2]).audio is None


def test_what_is_corrupt_or_truncated_is_skipped_and_the_rest_read(tmp_path: Path) -> None:
    shard = tmp_path / "train00.tfrecord"
    examples = [shards.example(f"id{i}", *video(5, i)) for i in range(4)]
    offsets = shards.write(shard, *examples)
    data = bytearray(shard.read_bytes())
    data[offsets[1] + 3000] ^= 1  # in the features of the second
    shard.write_bytes(data[:-10])  # the last one is cut off
    with pytest.warns(UserWarning, match=r"train00\.tfrecord: truncated: .*; the rest of this shard is left out"):
        index = load_index(tmp_path)
    assert index["id"][:] == ["id0", "id1", "id2"]
    clips = [TrainClips(index, vocabulary.build([]), FMT, 0, AugmentConfig())[(0, i)] for i in range(3)]
    assert isinstance(clips[1], Skipped) and "do not match their checksum" in clips[1].reason
    assert [clip.id for clip in clips] == ["id0", "id1", "id2"]

    data[offsets[2]] ^= 1  # the length of the third
    shard.write_bytes(data)
    with pytest.warns(UserWarning, match="length at byte .* does not match its checksum"):
        assert load_index(tmp_path)["id"][:] == ["id0", "id1"]
    shard.unlink()
    with pytest.raises(BrokenClip, match="No such file"):
        read_features(index["video"][0])


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"\xff\xff\xff", "not a SequenceExample"),
        (b"", "expected a feature list rgb; found none"),
        (
            shards.example("aaaa", np.zeros((2, 1000), np.uint8), None),
            "expected 1024 bytes of rgb a second; found 1000",
        ),
    ],
)
def test_records_of_something_else(tmp_path: Path, data: bytes, complaint: str) -> None:
    shards.write(tmp_path / "train.tfrecord", data)
    with pytest.raises(BrokenClip, match=complaint):
        read_features(f"{tmp_path}/train.tfrecord#0")


def test_windows_of_features(tmp_path: Path) -> None:
    short, long = video(2), video(20)
    shards.write(tmp_path / "train.tfrecord", shards.example("long", *long), shards.example("short", *short))
    index = load_index(tmp_path)
    clips = TrainClips(index, vocabulary.build([]), FMT, 0, AugmentConfig())
    starts = set()
    for epoch in range(200):
        clip = clips[(epoch, 0)]
        starts.add(int(clip.start))
        assert numbers(clip.video) == numbers(clip.audio) == list(range(int(clip.start), int(clip.start) + 4))
    assert starts == set(range(17))  # every second at which a window can begin
    assert numbers(clips[(0, 1)].video) == [0, 1, 1, 1]
    batch = collate([clips[(0, 0)], clips[(0, 1)]])
    assert batch["video"].shape == (2, 4, 1024) and batch["audio"].shape == (2, 4, 128)
    assert batch["text_valid"].shape == (2, 2) and not batch["text_valid"].any() and batch["audio_valid"].all()
    held_out = EvalClips(index, vocabulary.build([]), FMT)
    assert [held_out[i, 0].start for i in range(2)] == [8, 0]


def run(tmp_path: Path, texts: bool) -> configuration.Config:
    root = tmp_path / "yt8m"
    for split, count in (("train", 8), ("test", 4)):
        examples = [shards.example(f"{split}{i}", *video(6, 10 * count + i)) for i in range(count)]
        shards.write(root / f"{split}0000.tfrecord", *examples)
        if texts:
            with (root / "texts.jsonl").open("a") as file:
                file.writelines(json.dumps({"id": f"{split}{i}", "text": f"clip {i}"}) + "\n" for i in range(count))
    tiny = [o for o in TINY if not o.startswith(("clip.", "model.audio"))]
    where = [f"run.dir={tmp_path / 'runs'}", f"data.manifest={root}", "clip.frames=4", "model.size=demo"]
    return configuration.load(CONFIG, [*tiny, *where])


def test_a_run_on_features_alone(tmp_path: Path) -> None:
    config = run(tmp_path, texts=False)
    assert "| activations of one clip | 0.0" in plan(config)
    results = pretrain(config)
    assert list(results["trained"]) == ["audio->video"] and results["trained"]["audio->video"]["pairs"] == 4
    assert all(row["loss_va"] > 0 and row["loss_vt"] == 0 for row in metrics.read_metrics(config.folder))
    assert (config.folder / "report.html").is_file()
    assert evaluate(["retrieval", f"checkpoint={config.folder}"]) == 0
    with pytest.raises(ConfigError, match="only clips of raw media can be scored"):
        prepare(ScoreKeys(checkpoint=config.folder, out=tmp_path / "scored"))


def test_a_run_on_features_with_texts_by_id(tmp_path: Path) -> None:
    config = run(tmp_path, texts=True)
    results = pretrain(config)
    assert results["trained"]["text->video"]["pairs"] == results["trained"]["audio->video"]["pairs"] == 4
    assert all(row["loss_vt"] > 0 and "agreement_mean" in row for row in metrics.read_metrics(config.folder))


def test_a_run_on_raw_clips_with_recognised_speech(tmp_path: Path) -> None:
    rows = []
    for number in range(6):
        media.write(tmp_path / f"clips/v{number}.mp4", seconds=4.0, size=(48, 32))
        for start in (0.0, 2.0):
            heard = [{"start": start + 0.5, "end": start + 1.0, "text": f"second {start:g} of {number}"}]
            rows.append(
                {
                    "id": f"v{number}:{start:g}", "video": f"clips/v{number}.mp4", "start": start, "end": start + 2.0,
                    "split": "test" if number > 3 else "train", "narrations": heard,
                }
            )  # fmt: skip
    manifest = tmp_path / "clips.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    where = [f"run.dir={tmp_path / 'runs'}", f"data.manifest={manifest}"]
    config = configuration.load(DEMO, [*TINY, *where])
    results = pretrain(config)
    assert results["trained"]["text->video"]["pairs"] == 4
    assert all(row["loss_vt"] > 0 and row["skipped_clips"] == 0 for row in metrics.read_metrics(config.folder))


def test_features_need_a_second_each_and_a_folder() -> None:
    with pytest.raises(ConfigError, match=r"clip\.fps=5 must be 1"):
        configuration.load(CONFIG, ["data.manifest=x", "clip.fps=5"])
    with pytest.raises(ConfigError, match=r"needs data\.manifest"):
        configuration.load(CONFIG, ["data.manifest=null"])
