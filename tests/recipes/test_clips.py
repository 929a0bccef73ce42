"""From an index to batches: windows, texts, augmentation, skips, and an order that workers and resuming leave alone."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from recipes.config import AugmentConfig, ClipFormat
from recipes.data import vocabulary
from recipes.data.augment import TO_RGB, TO_YIQ, add_noise, augment, center, jitter, random_crop
from recipes.data.clips import Clip, EvalClips, NarratedClips, TrainClips, collate, nearest
from recipes.data.index import load_index
from recipes.data.loader import eval_loader, train_loader
from recipes.data.skipped import Skipped
from recipes.model.objective import same_captions
from tests.recipes import media

FMT = ClipFormat(frames=4, fps=10.0, size=32, audio_seconds=0.5, narrations=2, words=6)
STILL = AugmentConfig(crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0), flip=0.0, colour=0.0, noise=0.0)


def as_index(root: Path, rows: list[dict[str, Any]]) -> Dataset:
    path = root / "manifest.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return load_index(path)


def words(index: Dataset) -> Tokenizer:
    return vocabulary.build(n["text"] for narrations in index["narrations"] for n in narrations)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Four good videos, one of them mute and without text, one short; a missing, an empty and a truncated file."""
    root = tmp_path_factory.mktemp("videos")
    told = [{"start": i, "end": i + 0.9, "text": f"second {i}"} for i in range(4)]
    media.write(root / "good.mp4", size=(64, 64))
    media.write(root / "stereo.mp4", size=(64, 48), sample_rate=44_100, channels=2)
    media.write(root / "mute.mp4", size=(48, 64), audio=False)
    media.write(root / "short.mp4", seconds=0.3, size=(64, 64))
    media.truncate(media.write(root / "truncated.mp4", size=(64, 64)), 0.6)
    (root / "empty.mp4").touch()
    rows = [
        {"video": "good.mp4", "narrations": told},
        {"video": "stereo.mp4", "text": "second 3"},
        {"video": "mute.mp4", "text": None},
        {
            "video": "short.mp4",
            "narrations": [{"start": 0, "end": 9, "text": "?!"}, {"start": 0, "end": 9, "text": "word"}],
        },
        {"video": "missing.mp4", "text": "word"},
        {"video": "empty.mp4", "text": "word"},
        {"video": "truncated.mp4", "text": "word"},
    ]
    return as_index(root, rows)


def clips_of(index: Dataset, seed: int = 0, config: AugmentConfig = STILL) -> TrainClips:
    return TrainClips(index, words(index), FMT, seed, config)


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key] for key in a
    )


# ------------------------------------------------------------------------------------------------------ one clip


def test_a_training_clip_is_the_window_it_says(index: Dataset) -> None:
    clips = clips_of(index)
    starts = []
    for epoch in range(20):
        clip = clips[(epoch, 0)]
        first = int(clip.start * 10 + 5e-3)
        assert [media.number_of(picture) for picture in clip.video] == [first + i for i in range(4)]
        middle = clip.start + 0.25
        if abs(middle - round(middle)) > 0.26:  # the window lies within one second
            assert media.frequency_of(clip.audio, 16_000) == pytest.approx(media.tone(int(middle)), abs=10)
        assert clip.captions == [n["text"] for n in nearest(index[0]["narrations"], middle, 2)]
        if middle % 1 < 0.9:  # between two narrations it may be either
            assert clip.captions[0] == f"second {int(middle)}"
        starts.append(clip.start)
    assert min(starts) < 1 and max(starts) > 2.5 and max(starts) <= 3.5


def test_a_clip_depends_on_seed_epoch_and_row_alone(index: Dataset) -> None:
    one, two = clips_of(index, 1, AugmentConfig()), clips_of(index, 1, AugmentConfig())
    first = one[(3, 0)]
    two[(0, 1)], two[(9, 0)]
    again = two[(3, 0)]
    assert (first.video == again.video).all() and (first.audio == again.audio).all() and first.start == again.start
    for other in (one[(4, 0)], clips_of(index, 2, AugmentConfig())[(3, 0)]):
        assert other.start != first.start


def test_without_audio_and_without_text(index: Dataset) -> None:
    clip = clips_of(index)[(0, 2)]
    assert not clip.has_audio and clip.audio.shape == (8000,) and not clip.audio.any()
    assert clip.captions == [] and not clip.text.any() and clip.video.shape == (4, 32, 32, 3)


def test_shorter_than_the_window(index: Dataset) -> None:
    clip = clips_of(index)[(0, 3)]
    assert clip.start == 0.0 and [media.number_of(picture) for picture in clip.video] == [0, 1, 2, 2]
    assert clip.has_audio and not clip.audio[-1000:].any()


def test_a_part_of_a_file_is_all_that_is_shown_of_it(tmp_path: Path) -> None:
    media.write(tmp_path / "a.mp4", size=(64, 64))
    parts = [{"start": 1.0, "end": 2.5}, {"start": 2.0, "end": 2.2}, {"start": 3.0}, {"end": 1.0}, {"start": 4.5}]
    index = as_index(tmp_path, [{"video": "a.mp4", "text": f"part {i}", **part} for i, part in enumerate(parts)])
    train, narrated = clips_of(index), NarratedClips(index, words(index), FMT, windows=2)
    for row, (first, last) in enumerate([(10, 24), (20, 21), (30, 39), (0, 9)]):
        seen = [train[(epoch, row)] for epoch in range(20)] + [narrated[(row, window)] for window in (0, 1)]
        numbers = {media.number_of(picture) for clip in seen for picture in clip.video}
        assert numbers <= set(range(first, last + 1)) and min(numbers) <= first + 1 and max(numbers) >= last - 2, row
    assert not train[(0, 1)].audio[round(0.2 * 16_000) :].any() and train[(0, 1)].audio[:3200].any()
    assert "begins at 4.5 s, after the end of the file" in train[(0, 4)].reason
    centred = EvalClips(index, words(index), FMT)[0, 0]
    assert centred.start == pytest.approx(1.5)  # the middle of the part, not of the file


@pytest.mark.parametrize(("row", "reason"), [(4, "no such file"), (5, "empty"), (6, "truncated")])
def test_what_cannot_be_read_is_skipped_with_its_reason(index: Dataset, row: int, reason: str) -> None:
    skipped = clips_of(index)[(0, row)]
    assert isinstance(skipped, Skipped) and skipped.id == index[row]["id"] and reason in skipped.reason


def test_nearest_narrations() -> None:
    told = [{"start": s, "end": e, "text": t} for s, e, t in [(0, 1, "a"), (2, 8, "long"), (4, 5, "b"), (6, 7, "c")]]
    expected = {
        (4.5, 2): ["long", "b"],
        (5.5, 3): ["long", "b", "c"],
        (0.5, 9): ["a", "long", "b", "c"],
        (1.5, 1): ["a"],
    }
    for (time, count), texts in expected.items():  # at 4.5 s both are said; the earlier start first
        assert [narration["text"] for narration in nearest(told, time, count)] == texts
    assert nearest([], 1.0, 3) == []


def test_evaluation_is_one_clip_per_narration_about_its_middle(index: Dataset) -> None:
    clips = EvalClips(index, words(index), FMT)
    assert len(clips) == 4 + 1 + 1 + 3  # the mute one has no text, the short one has one text without a word
    assert [clips[i, 0].captions for i in range(5)] == [[f"second {i}"] for i in range(4)] + [["second 3"]]
    assert [clips[i, 0].start for i in range(4)] == pytest.approx([0.2, 1.2, 2.2, 3.2])
    assert [media.number_of(p) for p in clips[1, 0].video] == [12, 13, 14, 15]
    assert clips[4, 0].start == pytest.approx(1.75, abs=0.05)  # a text over the whole clip: its middle
    assert clips[0, 0].text.shape == (1, 6)
    assert [type(clips[i, 0]) for i in range(6, 9)] == [Skipped] * 3
    assert (clips[0, 0].video == clips[0, 0].video).all()


def test_evaluation_without_any_text_is_one_clip_about_the_middle_of_each_video(index: Dataset) -> None:
    clips = EvalClips(index.select([2]), words(index), FMT)
    clip = clips[0, 0]
    assert len(clips) == 1
    assert clip.id == "mute" and not clip.text.any()
    assert clip.start == pytest.approx(1.75)


# ------------------------------------------------------------------------------------------------------- batches


def test_collate(index: Dataset) -> None:
    clips = clips_of(index)
    batch = collate([clips[(0, row)] for row in range(7)])
    assert batch["video"].shape == (4, 4, 32, 32, 3) and batch["video"].dtype == torch.uint8
    assert batch["audio"].shape == (4, 8000) and batch["audio"].dtype == torch.float32
    assert batch["audio_valid"].tolist() == [True, True, False, True]
    assert batch["text"].shape == (4, 2, 6) and batch["text"].dtype == torch.int64
    assert batch["text_valid"].tolist() == [[True, True], [True, False], [False, False], [False, True]]
    assert batch["index"].tolist() == [0, 1, 2, 3] and batch["id"] == ["good", "stereo", "mute", "short"]
    assert batch["captions"][1:] == [["second 3"], [], ["?!", "word"]]
    assert batch["start"].dtype == torch.float64
    assert [s.id for s in batch["skipped"]] == ["missing", "empty", "truncated"]


def test_a_batch_of_skips_is_only_that(index: Dataset) -> None:
    clips = clips_of(index)
    batch = collate([clips[(0, 4)], clips[(0, 5)]])
    assert batch.keys() == {"skipped"} and len(batch["skipped"]) == 2


def test_text_keys_mark_equal_captions() -> None:
    tok = vocabulary.build(["red ball", "blue cube"])
    texts = [["red ball", "blue cube"], ["Red, ball!", ""], ["blue", "cube blue"], ["", ""]]
    items = []
    for row, captions in enumerate(texts):
        text = np.stack([vocabulary.encode(tok, caption, 3) for caption in captions])
        video, audio = np.zeros((1, 2, 2, 3), np.uint8), np.zeros(4, np.float32)
        items.append(Clip(row, str(row), video, audio, True, text, captions, 0.0))
    found = same_captions(collate(items)["text_key"])
    expected = torch.zeros(4, 4, 2, dtype=torch.bool)
    for b, row in enumerate(texts):
        for other, captions in enumerate(texts):
            for p, caption in enumerate(captions):
                plain = [c.lower().strip("!").replace(",", "") for c in row if c]
                expected[b, other, p] = bool(caption) and caption.lower().strip("!").replace(",", "") in plain
    assert torch.equal(found, expected)
    assert expected[0, 1, 0] and not expected[0, 2].any()  # the case is there


def test_unknown_words_are_not_all_the_same() -> None:
    tok = vocabulary.build(["a ball"])
    items = []
    for row, caption in enumerate(["a zebra", "a piano", "A Zebra"]):
        text = vocabulary.encode(tok, caption, 3)[None]
        video, audio = np.zeros((1, 2, 2, 3), np.uint8), np.zeros(4, np.float32)
        items.append(Clip(row, str(row), video, audio, True, text, [caption], 0.0))
    same = same_captions(collate(items)["text_key"])[:, :, 0]
    assert same.tolist() == [[True, False, True], [False, True, False], [True, False, True]]


def test_unknown_words_are_valid_text(index: Dataset) -> None:
    clips = TrainClips(index, vocabulary.build(["nothing of it"]), FMT, 0, STILL)
    batch = collate([clips[(0, 0)]])
    assert batch["text_valid"].all() and set(batch["text"].unique().tolist()) == {0, 1}


# ------------------------------------------------------------------------------------------------ order, workers


def test_workers_change_nothing_nor_does_resuming(index: Dataset) -> None:
    clips = clips_of(index, seed=5, config=AugmentConfig())
    alone = list(islice(train_loader(clips, 3, seed=5, workers=0), 6))
    helped = list(islice(train_loader(clips, 3, seed=5, workers=2), 6))
    resumed = list(islice(train_loader(clips, 3, seed=5, workers=2, start_step=4), 2))
    assert all(map(same, alone, helped)) and all(map(same, alone[4:], resumed))
    assert not same(alone[0], alone[1])
    assert sum(len(batch["skipped"]) for batch in alone) > 0


def test_eval_loader_goes_through_once_in_order(index: Dataset) -> None:
    clips = EvalClips(index, words(index), FMT)
    batches = [range(4), range(4, 8), range(8, 9)]
    joined = list(eval_loader(clips, batches, workers=0))
    assert [len(batch.get("id", [])) + len(batch["skipped"]) for batch in joined] == [4, 4, 1]
    assert [c for batch in joined for c in batch.get("captions", [])][:2] == [["second 0"], ["second 1"]]
    assert all(map(same, joined, eval_loader(clips, batches, workers=1)))


# ------------------------------------------------------------------------------------------------- augmentation


def noise(height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, height, width, 3), np.uint8)


@given(seed=st.integers(0, 2**32), height=st.integers(1, 60), width=st.integers(1, 60))
def test_crop_has_the_area_and_aspect_asked_for(seed: int, height: int, width: int) -> None:
    video = np.arange(height * width).reshape(1, height, width, 1)
    crop = random_crop(video, np.random.default_rng(seed), (0.3, 0.9), (0.5, 2.0))
    h, w = crop.shape[1:3]
    assert h >= 1 and w >= 1
    if min(height, width) >= 30:  # on small pictures rounding to pixels decides
        assert 0.5 * 0.85 <= w / h <= 2.0 * 1.15 and 0.25 <= h * w / (height * width) <= 0.95
    rows, columns = np.divmod(crop[0, :, :, 0], width)  # a rectangle of the picture, not something else
    assert (np.diff(columns, axis=1) == 1).all() and (np.diff(rows, axis=0) == 1).all()


def test_crop_that_cannot_fit_is_the_largest_permitted() -> None:
    crop = random_crop(np.zeros((1, 10, 100, 3), np.uint8), np.random.default_rng(0), (0.9, 1.0), (0.5, 2.0))
    assert crop.shape == (1, 10, 20, 3)


def test_all_pictures_of_a_clip_are_changed_alike() -> None:
    still = np.repeat(noise()[:1], 5, axis=0)
    for seed in range(10):
        out = augment(still, 32, np.random.default_rng(seed), AugmentConfig())
        assert out.shape == (5, 32, 32, 3) and out.dtype == np.uint8 and (out == out[:1]).all()


@pytest.mark.parametrize("shape", [(8, 64, 64, 3), (3, 224, 224, 3), (2, 5, 7, 3)])
def test_colours_change_by_one_affine_map_about_the_mean(shape: tuple[int, ...]) -> None:
    """The formula itself in float64; rounding may differ where a value lies half-way."""
    video = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    config = AugmentConfig()
    rng = np.random.default_rng(5)
    shift = 255 * rng.uniform(-config.brightness, config.brightness)
    contrast, saturation = rng.uniform(*config.contrast), rng.uniform(*config.saturation)
    angle = 2 * np.pi * rng.uniform(-config.hue, config.hue)
    chroma = saturation * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turned = video @ (TO_RGB @ np.block([[np.eye(1), np.zeros((1, 2))], [np.zeros((2, 1)), chroma]]) @ TO_YIQ).T
    expected = contrast * turned + (1 - contrast) * turned.mean((0, 1, 2)) + shift
    found = jitter(video, np.random.default_rng(5), config)
    assert np.abs(found - expected.clip(0, 255)).max() < 0.501


def test_flip_is_half_of_the_time() -> None:
    video = np.zeros((1, 8, 8, 3), np.uint8)
    video[:, :, :4] = 255
    config = AugmentConfig(crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0), colour=0.0)
    flips = [augment(video, 8, np.random.default_rng(seed), config)[0, 0, 0, 0] == 0 for seed in range(300)]
    assert 0.4 < np.mean(flips) < 0.6


def test_each_colour_change_does_what_it_says() -> None:
    still = {"brightness": 0.0, "contrast": (1.0, 1.0), "saturation": (1.0, 1.0), "hue": 0.0}
    video, rng = noise(), np.random.default_rng(0)
    assert np.abs(jitter(video, rng, AugmentConfig(**still)).astype(int) - video).max() <= 1
    low = video // 4 + 96  # far from black and white, where nothing is cut off
    luma = low @ [0.299, 0.587, 0.114]
    bright = jitter(low, rng, AugmentConfig(**still | {"brightness": 0.1})).astype(int) - low
    assert np.ptp(bright) <= 1 and 0 < abs(bright.mean()) <= 25.5
    flat = jitter(low, rng, AugmentConfig(**still | {"contrast": (0.5, 0.5)})).astype(float)
    assert flat.std() == pytest.approx(low.std() / 2, rel=0.03) and flat.mean() == pytest.approx(low.mean(), abs=0.5)
    grey = jitter(low, rng, AugmentConfig(**still | {"saturation": (0.0, 0.0)})).astype(float)
    assert np.abs(grey - luma[..., None]).max() <= 1
    turned = jitter(low, rng, AugmentConfig(**still | {"hue": 0.2})).astype(float)
    assert np.abs(turned - low).max() > 5 and np.abs(turned @ [0.299, 0.587, 0.114] - luma).max() <= 1.5


def test_center_is_the_square_in_the_middle() -> None:
    video = np.zeros((2, 40, 80, 3), np.uint8)
    video[:, :, 20:60] = 200
    assert (center(video, 16) == 200).all() and center(video, 16).shape == (2, 16, 16, 3)
    assert (center(video.transpose(0, 2, 1, 3), 40) == 200).all()


def test_noise_on_sound_is_a_share_of_its_peak() -> None:
    audio = np.zeros(20_000, np.float32)
    audio[0] = -0.5
    noisy = add_noise(audio, np.random.default_rng(0), 0.01)
    assert noisy.dtype == np.float32 and (noisy - audio).std() == pytest.approx(0.005, rel=0.05)
    assert not add_noise(np.zeros(9, np.float32), np.random.default_rng(0), 0.01).any()
    assert add_noise(np.zeros(0, np.float32), np.random.default_rng(0), 0.01).shape == (0,)
