"""What is trained on and what is held out: nothing is in both, whatever a manifest calls its splits."""

import json
import logging

import pytest

from recipes.config import load
from recipes.errors import ConfigError
from recipes.splits import load_splits, save_splits, train_and_test, trained_on
from tests.recipes.conftest import DEMO


@pytest.fixture
def split(tmp_path):
    """Function of rows {video: split} that gives the names of the training and of the test videos."""

    def run(rows, *overrides, name="manifest.jsonl"):
        path = tmp_path / name
        lines = []
        for i, (video, part) in enumerate(rows):
            (tmp_path / video).touch()
            lines.append(json.dumps({"id": str(i), "video": video, "text": f"text {i}", "split": part}))
        path.write_text("\n".join(lines))
        parts = train_and_test(load(DEMO, [f"data.manifest={path}", *overrides]))
        return [sorted(v.rsplit("/", 1)[1] for v in part["video"]) for part in (parts.train, parts.test)]

    return run


def test_names_of_splits_in_any_case_and_others_left_alone(split, caplog):
    rows = [("a", "Train"), ("b", "TRAINING"), ("c", ""), ("d", "Test"), ("e", "validate"), ("f", "dev")]
    with caplog.at_level(logging.WARNING):
        assert split(rows) == [["a", "b", "c"], ["d"]]
    assert "'dev', 'validate' are not used" in caplog.text


def test_without_splits_a_tenth_is_held_out_by_video(split):
    rows = [(f"v{i // 3}", "") for i in range(300)]  # three captions a video
    train, test = split(rows)
    assert not set(train) & set(test) and len(train) + len(test) == 300
    assert 3 <= len(set(test)) <= 20
    assert all(test.count(video) == 3 for video in test)


def test_without_a_test_split_the_others_are_left_alone_all_the_same(split):
    rows = [(f"v{i}", "val" if i % 2 else "train") for i in range(200)]
    train, test = split(rows)
    assert len(train) + len(test) == 100 and test
    assert all(int(video[1:]) % 2 == 0 for video in train + test)


@pytest.mark.parametrize("names", [("train", "val", "test"), ("train", "val"), ("",)])
def test_what_a_run_trains_on_can_be_asked_of_its_manifest(split, tmp_path, names):
    train, _ = split([(f"v{i}", names[i % len(names)]) for i in range(200)])
    rows = trained_on(str(tmp_path / "manifest.jsonl"))
    assert sorted(video.rsplit("/", 1)[1] for video in rows["video"]) == train


def test_a_video_under_two_names_is_a_leak(split, tmp_path, monkeypatch):
    rows = [(f"v{i}", "") for i in range(4)]
    (tmp_path / "deep").mkdir()
    other = tmp_path / "deep" / "other.jsonl"
    other.write_text(json.dumps({"video": "../v1", "text": "again"}))
    monkeypatch.chdir(tmp_path / "deep")
    with pytest.raises(ValueError, match=r"1 video\(s\) are both in training and in test"):
        split(rows, "data.test=other.jsonl")


def test_too_little_to_train_on_is_an_error_with_the_splits(split):
    with pytest.raises(ValueError, match=r"1 video\(s\) to train on and 1 to test on.*Splits: 'test', 'train'"):
        split([("a", "train"), ("b", "test")])


def test_a_mixture_keeps_its_sources_apart(tmp_path):
    def source(name, *rows):
        folder = tmp_path / name
        folder.mkdir()
        for row in rows:
            (folder / row["video"]).touch()
        (folder / "m.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        return f"data.sources.{name}.manifest={folder / 'm.jsonl'}"

    howto = [{"id": i, "video": f"{i}.mp4", "text": i, "split": "test" if i == "c" else "train"} for i in "abc"]
    audio = [{"id": i, "video": f"{i}.mp4", "text": None, "split": "train"} for i in "abxy"]
    sources = [source("howto", *howto), source("audio", *audio), "data.sources.audio.weight=0.5"]
    splits = train_and_test(load(DEMO, [*sources, f"data.test={tmp_path / 'howto' / 'm.jsonl'}"]))
    assert splits.train["id"][:] == ["howto/a", "howto/b", *(f"audio/{i}" for i in "abxy")]
    assert splits.sources == [(2, 1.0), (4, 0.5)] and splits.test["id"][:] == ["c"]
    config = load(DEMO, sources)
    assert config.data_name == "howto 67%, audio 33%"


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["data.sources.a.weight=1"], "manifest"),
        (
            ["data.sources.a.manifest=x", "data.sources.a.weight=0"],
            r"a\.weight=0\.0 must be more than 0",
        ),
        (["data.sources.a.manifest=x", "data.manifest=y"], "exclude each other"),
        (["data.sources.a.manifest=x", "data.sources.a.share=1"], "share"),
    ],
)
def test_mixtures_that_cannot_be(overrides, complaint):
    with pytest.raises(ConfigError, match=complaint):
        load(DEMO, overrides)


def test_what_other_processes_read_is_the_same(tmp_path):
    for i in range(20):
        (tmp_path / f"{i}.mp4").touch()
    rows = [{"id": str(i), "video": f"{i}.mp4", "text": str(i), "split": ["train", "test"][i % 2]} for i in range(20)]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sources = [f"data.sources.{name}.manifest={tmp_path / 'm.jsonl'}" for name in "ab"]
    splits = train_and_test(load(DEMO, [*sources, "data.sources.b.weight=2"]))
    for _ in range(2):  # a run that is begun again writes over what is there
        save_splits(splits, tmp_path / "run")
        train, test, found = load_splits(tmp_path / "run")
        assert train.to_list() == splits.train.to_list() and test.to_list() == splits.test.to_list()
        assert found == splits.sources == [(10, 1.0), (10, 2.0)]


@pytest.fixture
def films(tmp_path):
    """Function of whether clips name their film, that writes a manifest of 120 clips out of 23 films."""

    def write(grouped):
        rows = []
        for i in range(120):
            video = f"film{'abcdefghijklmnopqrstuvw'[i % 23]}_{i // 23:04d}.mp4"
            (tmp_path / video).write_bytes(b"%d" % i)
            rows.append({"video": video, "text": f"text {i}"} | ({"group": video[:5]} if grouped else {}))
        (tmp_path / "films.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return tmp_path / "films.jsonl"

    return write


def test_a_group_is_in_one_split_and_nothing_warns(films, caplog):
    splits = train_and_test(load(DEMO, [f"data.manifest={films(True)}"]))
    assert len(splits.test) and len(splits.train) + len(splits.test) == 120
    assert not set(splits.train["group"]) & set(splits.test["group"])
    assert "one source" not in caplog.text
    mixed = [f"data.sources.{name}.manifest={films(True)}" for name in "ab"]
    assert len(train_and_test(load(DEMO, mixed)).test) == 2 * len(splits.test)  # the same films in a mixture


def test_without_a_group_clips_of_one_film_are_told(films, caplog):
    train_and_test(load(DEMO, [f"data.manifest={films(False)}"]))
    assert "clips of one source seem to be in training and in test, for example film" in caplog.text
    assert "a column 'group'" in caplog.text


def test_names_that_are_numbers_tell_of_no_source(split, caplog):
    split([(f"video_{i:04d}.mp4", "") for i in range(100)])
    assert "one source" not in caplog.text


def test_a_group_in_both_named_splits_is_told(tmp_path, caplog):
    rows = [{"video": f"{i}.mp4", "text": "a", "split": "test" if i > 3 else "train", "group": "f"} for i in range(5)]
    [(tmp_path / row["video"]).touch() for row in rows]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train_and_test(load(DEMO, [f"data.manifest={tmp_path / 'm.jsonl'}"]))
    assert "1 group(s) are both in training and in test, for example f" in caplog.text
