"""The procedural corpus: its plans, its pictures and sounds, and the files that it writes."""

import csv
import json
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from recipes.data.corpus import STYLES, Corpus, build, layout, plan_video
from recipes.data.corpus.narration import WORDS
from recipes.data.corpus.plan import NO_AUDIO, NO_TEXT, Segment
from recipes.data.corpus.scene import RGB, draw
from recipes.data.corpus.sound import PITCH, synthesise
from recipes.data.corpus.thing import COLOURS, MOTIONS, SHAPES, TEXTURES, Beat, Thing
from recipes.data.labels import Labelled, load_labelled

SMALL = {"videos": 3, "test_videos": 1, "size": 64, "fps": 4, "workers": 1}
SHAPE_WORDS, COLOUR_WORDS, ADJECTIVES, PATTERNS = (WORDS[k] for k in ("shapes", "colours", "textures", "patterns"))
STEADY = Beat(tempo=1.0, phase=0.0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(Corpus(tmp_path_factory.mktemp("corpora") / "wild", "wild", seed=1, **SMALL))


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def training_ids(folder: Path) -> list[str]:
    with open(folder / "HowTo100M_v1.csv", newline="", encoding="utf-8") as file:
        return [row["video_id"] for row in csv.DictReader(file)]


def still(thing: Thing, seconds: float = 4.0) -> Segment:
    return Segment(0.0, seconds, thing, thing, STEADY)


def names(text: str, words: tuple[str, ...]) -> bool:
    return any(re.search(rf"\b{word}\b", text.lower()) for word in words)


# plans


@pytest.mark.parametrize("style", STYLES)
def test_kinds_of_narration_follow_the_rates_of_the_style(style: str) -> None:
    plans = [plan_video(style, 0, index) for index in range(1500)]
    kinds = Counter(narration.kind for plan in plans for narration in plan.narrations)
    total = sum(kinds.values())
    assert total > 5000
    for kind in ("aligned", "wrong", "off_topic"):
        assert kinds[kind] / total == pytest.approx(getattr(STYLES[style], kind), abs=0.03)
    shifted = (kinds["early"] + kinds["late"]) / total
    assert shifted == pytest.approx(STYLES[style].early + STYLES[style].late, abs=0.03)
    segments = [segment for plan in plans for segment in plan.segments]
    assert np.mean([segment.cutaway for segment in segments]) == pytest.approx(STYLES[style].cutaway, abs=0.03)
    assert np.mean([not plan.narrations for plan in plans]) == pytest.approx(NO_TEXT, abs=0.012)
    assert np.mean([not plan.has_audio for plan in plans]) == pytest.approx(NO_AUDIO, abs=0.012)


def test_styles_are_what_they_are_called() -> None:
    assert STYLES["narrated"].aligned == pytest.approx(0.8)
    assert STYLES["wild"].wrong + STYLES["wild"].off_topic == pytest.approx(0.6)


@pytest.mark.parametrize("style", STYLES)
def test_videos_are_rows_of_segments_of_four_to_seven_seconds(style: str) -> None:
    for index in range(200):
        plan = plan_video(style, 3, index)
        assert 20 <= plan.seconds <= 30
        assert 3 <= len(plan.segments) <= 6
        assert plan.segments[0].start == 0.0
        assert plan.segments[-1].end == plan.seconds
        assert all(one.end == two.start for one, two in pairwise(plan.segments))
        assert all(3.98 <= segment.end - segment.start <= 7.02 for segment in plan.segments)
        assert re.fullmatch(r"[\w-]{11}", plan.video_id)


@pytest.mark.parametrize("style", STYLES)
def test_truth_is_true(style: str) -> None:
    """A text is called aligned exactly if it names the shape and the colour that are shown while it is said."""
    for index in range(300):
        plan = plan_video(style, 0, index)
        starts = [narration.start for narration in plan.narrations]
        assert starts == sorted(starts)
        for narration, row in zip(plan.narrations, plan.truth(), strict=True):
            segment = plan.segments[narration.segment]
            assert segment.start <= narration.start < narration.end <= segment.end + 0.01
            shown = segment.shown
            assert row["shown"] == {key: getattr(shown, key) for key in ("shape", "colour", "texture", "motion")}
            fits = names(row["text"], SHAPE_WORDS[shown.shape]) and names(row["text"], COLOUR_WORDS[shown.colour])
            assert row["aligned"] == fits, row
            assert row["sound_aligned"] == (plan.has_audio and segment.heard == shown)


def test_wrong_texts_describe_objects_that_are_not_in_the_video() -> None:
    wrong = 0
    for index in range(200):
        plan = plan_video("wild", 0, index)
        for narration in plan.narrations:
            if narration.kind == "wrong":
                wrong += 1
                assert any(names(narration.text, words) for words in SHAPE_WORDS.values())
                assert not any(names(narration.text, SHAPE_WORDS[segment.heard.shape]) for segment in plan.segments)
                assert not names(narration.text, SHAPE_WORDS[plan.segments[narration.segment].shown.shape])
            elif narration.kind == "off_topic":
                assert not any(names(narration.text, words) for words in SHAPE_WORDS.values())
    assert wrong > 100


def test_held_out_videos_are_clean_complete_distinct_and_the_same_for_every_style() -> None:
    plans = [plan_video("wild", 0, index, held_out=True) for index in range(60)]
    assert plans == [plan_video("narrated", 0, index, held_out=True) for index in range(60)]
    narrations = [(n, plan.segments[n.segment].shown) for plan in plans for n in plan.narrations]
    assert len(narrations) >= 230
    assert len({shown for _, shown in narrations}) == len(narrations)
    for plan in plans:
        assert plan.has_audio
        assert not any(segment.cutaway for segment in plan.segments)
    for narration, shown in narrations:
        assert narration.kind == "aligned"
        assert names(narration.text, (*ADJECTIVES[shown.texture], PATTERNS[shown.texture]))
        assert names(narration.text, SHAPE_WORDS[shown.shape]) and names(narration.text, COLOUR_WORDS[shown.colour])
        assert len(narration.text.split()) >= 5


def test_plans_depend_on_style_seed_and_index_alone() -> None:
    assert plan_video("wild", 5, 7) == plan_video("wild", 5, 7)
    others = [plan_video("wild", 6, 7), plan_video("wild", 5, 8), plan_video("narrated", 5, 7)]
    others.append(plan_video("wild", 5, 7, held_out=True))
    for other in others:
        assert other.video_id != plan_video("wild", 5, 7).video_id
        assert other.segments != plan_video("wild", 5, 7).segments


# pictures and sounds


@pytest.mark.parametrize("shape", SHAPES)
def test_objects_have_their_colour_and_a_fair_share_of_the_frame(shape: str) -> None:
    for colour in COLOURS:
        thing = Thing(shape, colour, "plain", "drifts")
        frames = draw(still(thing, 1.0), 2, 64, np.random.default_rng(0)).astype(int)
        close = np.abs(frames - np.array(RGB[colour])).max(-1) < 60
        assert 0.06 < close.mean() < 0.4


def test_shapes_and_textures_look_different() -> None:
    def draw_thing(shape: str, texture: str) -> np.ndarray:
        return draw(still(Thing(shape, "red", texture, "drifts"), 1.0), 1, 64, np.random.default_rng(0)).astype(int)

    for texture in TEXTURES:
        pictures = [draw_thing(shape, texture) for shape in SHAPES]
        for i, one in enumerate(pictures):
            assert all(np.mean(np.abs(one - two).max(-1) > 40) > 0.02 for two in pictures[:i])
    for shape in SHAPES:
        pictures = [draw_thing(shape, texture) for texture in TEXTURES]
        for i, one in enumerate(pictures):
            assert all(np.mean(np.abs(one - two).max(-1) > 40) > 0.01 for two in pictures[:i])


@pytest.mark.parametrize("motion", MOTIONS)
def test_every_motion_moves(motion: str) -> None:
    frames = draw(still(Thing("square", "green", "plain", motion), 4.0), 10, 64, np.random.default_rng(0)).astype(int)
    assert frames.shape == (40, 64, 64, 3)
    moved = np.abs(frames - frames[0]).max(-1) > 50
    assert moved.mean(axis=(1, 2)).max() > 0.02


def test_the_shape_can_be_told_from_the_loudest_pitch() -> None:
    for shape in SHAPES:
        for texture in TEXTURES:
            for motion in MOTIONS:
                segment = still(Thing(shape, "blue", texture, motion), 2.0)
                wave = synthesise([segment], 16000, np.random.default_rng(0))
                assert wave.dtype == np.float32 and len(wave) == 32000 and np.abs(wave).max() <= 1.0
                power = np.abs(np.fft.rfft(wave)) ** 2
                hertz = np.fft.rfftfreq(len(wave), 1 / 16000)
                bands = {name: power[(hertz > 0.82 * f) & (hertz < 1.22 * f)].sum() for name, f in PITCH.items()}
                assert max(bands, key=bands.get) == shape


def test_a_bouncing_object_knocks_when_it_touches_the_floor() -> None:
    segment = still(Thing("ring", "white", "plain", "bounces"))
    wave = synthesise([segment], 16000, np.random.default_rng(0))
    frames = draw(segment, 10, 64, np.random.default_rng(0)).astype(int)
    white = np.abs(frames - np.array(RGB["white"])).max(-1) < 60
    height = [rows.nonzero()[0].mean() for rows in white]
    lowest = {n for n in range(len(height)) if height[n] == max(height[max(0, n - 4) : n + 5])}
    loudness = np.abs(wave).reshape(-1, 1600).mean(1)  # one value per frame
    assert {10, 20, 30} <= lowest
    assert all(loudness[n] > 3 * loudness[n - 1] for n in (10, 20, 30))


# files


def test_layout(corpus: Path) -> None:
    assert {path.name for path in corpus.iterdir()} == {
        "HowTo100M_v1.csv",
        "colours.jsonl",
        "raw_caption.json",
        "shapes.jsonl",
        "tags.jsonl",
        "test.jsonl",
        "trusted.jsonl",
        "truth.jsonl",
        "videos",
    }
    header = (corpus / "HowTo100M_v1.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header == "video_id,category_1,category_2,rank,task_id"
    ids, test = training_ids(corpus), read_lines(corpus / "test.jsonl")
    assert len(ids) == 3 and len(test) == 1
    captions = json.loads((corpus / "raw_caption.json").read_text(encoding="utf-8"))
    assert list(captions) == ids
    for caption in captions.values():
        assert set(caption) == {"start", "end", "text"}
        assert len(caption["start"]) == len(caption["end"]) == len(caption["text"])
    truth = read_lines(corpus / "truth.jsonl")
    told = [(id_, *row) for id_, c in captions.items() for row in zip(c["start"], c["end"], c["text"], strict=True)]
    assert [(row["video_id"], row["start"], row["end"], row["text"]) for row in truth] == told
    assert set(truth[0]) == {"video_id", "start", "end", "text", "kind", "aligned", "sound_aligned", "shown"}
    assert set(test[0]) == {"id", "video", "split", "narrations"} and test[0]["split"] == "test"
    assert {f"{id_}.mp4" for id_ in [*ids, test[0]["id"]]} == {path.name for path in (corpus / "videos").iterdir()}


def test_labels_are_of_what_is_shown_and_heard(corpus: Path) -> None:
    """Where a training narration belongs to picture and sound, it says the same; the parts share no video."""
    shapes, colours, tags = (load_labelled(corpus / f"{name}.jsonl") for name in ("shapes", "colours", "tags"))
    videos = shapes.index["video"][:]
    train, test = ({videos[row] for row in part} for part in shapes.splits[0][1:])
    assert train.isdisjoint(test) and len(train) == 3 and len(test) == 1
    compared = 0
    for told in read_lines(corpus / "truth.jsonl"):
        shape, colour, texture, motion = told["shown"].values()
        assert labels_at(shapes, told) == [[shape]] and labels_at(colours, told) == [[colour]]
        if told["sound_aligned"]:
            compared += 1
            assert labels_at(tags, told) == [[shape, texture, motion]]
    assert compared


def labels_at(data: Labelled, told: dict) -> list[list[str]]:
    """Labels of the clips in the middle of a narration."""
    middle = (told["start"] + told["end"]) / 2
    return [
        [data.names[number] for number in labels]
        for row, labels in zip(data.index.to_list(), data.labels, strict=True)
        if told["video_id"] in row["video"] and row["start"] <= middle < row["end"]
    ]


def test_training_files_never_mention_held_out_videos(corpus: Path) -> None:
    for row in read_lines(corpus / "test.jsonl"):
        assert (corpus / row["video"]).is_file()
        for name in ("HowTo100M_v1.csv", "raw_caption.json", "truth.jsonl"):
            assert row["id"] not in (corpus / name).read_text(encoding="utf-8")


def test_media_are_real(corpus: Path) -> None:
    for path in (corpus / "videos").iterdir():
        with av.open(str(path)) as container:
            video, audio = container.streams.video[0], container.streams.audio[0]
            assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
            pictures = list(container.decode(video=0))
            container.seek(0)
            samples = sum(frame.samples for frame in container.decode(audio=0))
        seconds = len(pictures) / 4
        assert 20 <= seconds <= 30
        assert samples / 16000 == pytest.approx(seconds, abs=0.2)
        assert [picture.time for picture in pictures] == pytest.approx(np.arange(len(pictures)) / 4)
        assert (pictures[0].width, pictures[0].height) == (64, 64)
        assert all(picture.key_frame for picture in pictures[::4])


def test_decoded_pictures_show_what_was_planned(corpus: Path) -> None:
    plan = plan_video("wild", 1, 0, held_out=True)
    with av.open(str(corpus / "videos" / f"{plan.video_id}.mp4")) as container:
        pictures = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
    rng = np.random.default_rng([plan.render_seed, 0])
    drawn = np.concatenate([draw(segment, 4, 64, rng) for segment in plan.segments])
    assert len(drawn) == len(pictures)
    assert np.abs(np.stack(pictures) - drawn).mean() < 8


def test_a_video_without_audio_has_no_audio_track(tmp_path: Path) -> None:
    index = next(i for i in range(1000) if not plan_video("wild", 0, i).has_audio)
    plan = plan_video("wild", 0, index)
    layout.render(plan, tmp_path, Corpus(tmp_path, "wild", size=32, fps=1))
    with av.open(str(tmp_path / f"{plan.video_id}.mp4")) as container:
        assert not container.streams.audio and len(list(container.decode(video=0))) == plan.seconds
    assert not any(row["sound_aligned"] for row in plan.truth())


def test_the_same_seed_gives_the_same_files_in_any_number_of_processes(corpus: Path, tmp_path: Path) -> None:
    again = build(Corpus(tmp_path / "again", "wild", seed=1, **SMALL | {"workers": 2}))
    for path in corpus.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (again / path.relative_to(corpus)).read_bytes(), path.name


# bad input


def test_a_failing_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fail(*args: object) -> None:
        calls.append(args)
        raise OSError("no space left on device")

    monkeypatch.setattr(layout, "_write_howto100m", fail)
    with pytest.raises(OSError, match="no space"):
        build(Corpus(tmp_path / "out", "narrated", **SMALL | {"videos": 1, "fps": 1}))
    assert calls and not list(tmp_path.iterdir())


def test_a_corpus_is_not_overwritten_unless_forced(tmp_path: Path) -> None:
    tiny = SMALL | {"videos": 1, "test_videos": 0, "fps": 1}
    out = build(Corpus(tmp_path / "out", "wild", **tiny))
    before = training_ids(out)
    with pytest.raises(FileExistsError, match="force=true"):
        build(Corpus(out, "wild", seed=9, **tiny))
    assert training_ids(out) == before
    build(Corpus(out, "wild", seed=9, force=True, **tiny))
    assert training_ids(out) != before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_force_never_removes_a_folder_that_is_not_a_corpus(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="not a corpus"):
        build(Corpus(tmp_path, "wild", force=True, **SMALL))
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"style": "wlid"}, "narrated, wild"),
        ({"videos": 0}, "videos=0 must be at least 1"),
        ({"test_videos": -1}, "test_videos"),
        ({"seed": -1}, "seed"),
        ({"size": 33}, "even"),
        ({"fps": 0}, "fps"),
        ({"sample_rate": 12345}, "16000"),
        ({"workers": 0}, "workers"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(tmp_path: Path, wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(Corpus(tmp_path / "out", **{"style": "wild"} | SMALL | wrong))
    assert not list(tmp_path.iterdir())


def test_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "recipes.data.corpus", f"out={tmp_path / 'out'}", "style=narrated", "workers=1"]
    command += ["videos=1", "test_videos=1", "fps=1", "size=32"]
    plan = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, check=True)
    assert "1 training videos" in plan.stdout and not (tmp_path / "out").exists()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "1 training videos" in done.stdout and (tmp_path / "out" / "truth.jsonl").is_file()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 2 and again.stderr.startswith("error: ") and "force=true" in again.stderr
