"""The labelling page: which clips are drawn, what is shown of them, and what the page says of each."""

import json
import math
import re
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.data.index import load_index
from recipes.figures.command import main
from recipes.figures.label import build
from recipes.figures.label.keys import LabelKeys
from recipes.figures.label.sample import draw
from recipes.files import jsonl
from recipes.scoring import table as table_of_scores
from tests.recipes import media
from tests.recipes.faulty import fatal
from tests.recipes.scored import row, write_table

NASTY = "</script><script>alert(1)</script> & “<b>”"


# ------------------------------------------------------------------------------------------------------------ the draw
def write_manifest(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Twelve rows: nine to train on, of which the last has no text, two of test, one of another split."""
    (tmp_path / "v.mp4").touch()
    rows = []
    for i in range(12):
        said = [{"start": 10.0 * n, "end": 10.0 * n + 2, "text": f"row {i}, text {n}"} for n in range(3)]
        split = {9: "test", 10: "test", 11: "val"}.get(i, "train")
        rows.append({"id": f"r{i}", "video": "v.mp4", "split": split, "group": f"g{i // 2}", "narrations": said})
    rows[8] |= {"narrations": [], "group": None}
    return write_manifest(tmp_path / "m.jsonl", rows)


def drawn_of(**keys) -> list:
    return draw(LabelKeys(**keys)).clips


def test_clips_that_a_run_trains_on_are_drawn_and_those_with_a_text_come_first(manifest):
    clips = drawn_of(data=str(manifest))
    assert sorted(c.id for c in clips) == sorted(f"r{i}#{n}" for i in range(8) for n in range(3))
    assert [c.id for c in clips] != sorted(c.id for c in clips)
    for clip in clips:
        i, n = map(int, re.fullmatch(r"r(\d)#(\d)", clip.id).groups())
        assert (clip.text, clip.group) == (f"row {i}, text {n}", f"g{i // 2}")
        assert (clip.start, clip.end) == (10 * n, 10 * n + 2)
    assert {c.id[:3] for c in drawn_of(data=str(manifest), split="val")} == {"r11"}
    assert len(drawn_of(data=str(manifest), count=7)) == 7


def test_data_without_any_text_are_labelled_by_their_sound(tmp_path):
    (tmp_path / "v.mp4").touch()
    rows = [{"id": f"r{i}", "video": "v.mp4", "split": "train", "text": "", "start": i, "end": i + 9} for i in range(5)]
    clips = drawn_of(data=str(write_manifest(tmp_path / "m.jsonl", rows)), count=4)
    assert len({c.id for c in clips}) == 4 and {c.text for c in clips} == {""}
    assert all(c.id.endswith("#-1") and (c.start, c.end) == (0, math.inf) for c in clips)


def test_the_draw_is_fixed_by_its_seed(manifest):
    one, same, other = (drawn_of(data=str(manifest), count=9, seed=seed) for seed in (0, 0, 1))
    assert one == same and {c.id for c in one} != {c.id for c in other}


def test_clips_of_earlier_rounds_are_not_shown_again(manifest, tmp_path):
    first = drawn_of(data=str(manifest), count=15)
    earlier = tmp_path / "trusted.jsonl"
    earlier.write_text(jsonl.as_text({"id": c.id} for c in first))
    second = draw(LabelKeys(data=str(manifest), count=15, exclude=[earlier]))
    assert {c.id for c in [*first, *second.clips]} == {c.id for c in drawn_of(data=str(manifest))}
    assert len(second.clips) == 9 and "15 labelled before are left out" in second.how
    rest = tmp_path / "rest.jsonl"
    rest.write_text(jsonl.as_text({"id": c.id} for c in second.clips))
    with pytest.raises(ValueError, match="no clip to label beside the 24"):
        draw(LabelKeys(data=str(manifest), exclude=[earlier, rest]))


def table(path: Path, figures: list[float | None], captions: list[str] | None = None, **more) -> Path:
    captions = captions or [f"caption {i}" for i in range(len(figures))]
    rows = [row(i, Path(f"/v/r{i}.mp4"), captions[i], i, figure) for i, figure in enumerate(figures)]
    return write_table(path, [r | {"narration": 2} for r in rows], **more)


def test_clips_of_a_table_keep_the_window_that_was_scored(tmp_path):
    rows = [row(i, Path(f"/v/r{i}.mp4"), f"caption {i}", i, None) for i in range(6)]
    rows[1] |= {"start": None, "end": None, "error": "gone"}
    rows[2]["caption"] = ""
    rows[3] |= {"caption": None, "narration": -1}
    clips = drawn_of(scores=write_table(tmp_path / "s.parquet", rows))
    assert {c.id for c in clips} == {"r0#0", "r4#0", "r5#0"}
    for clip in clips:
        assert (clip.start, clip.end) == (float(clip.id[1]), float(clip.id[1]) + 0.8) and clip.part is None
        assert clip.group == clip.id[:2] and clip.video == f"/v/{clip.group}.mp4"


def test_with_data_a_table_has_groups_and_nothing_held_out(manifest, tmp_path):
    rows = [row(i, tmp_path / f"r{i}.mp4", f"caption {i}", i, 0.5) for i in range(14)]
    scores = write_table(tmp_path / "s.parquet", rows)
    clips = drawn_of(scores=scores, data=str(manifest))
    assert {c.id: c.group for c in clips} == {f"r{i}#0": "r8" if i == 8 else f"g{i // 2}" for i in range(9)}
    strangers = write_table(tmp_path / "t.parquet", [row(0, Path("/v/x.mp4"), "", 0, 0.5)])
    with pytest.raises(ValueError, match="no clip to label among the rows of"):
        draw(LabelKeys(scores=strangers, data=str(manifest)))


@given(
    values=st.lists(st.one_of(st.none(), st.floats(-2, 2, width=32), st.just(math.nan)), min_size=1, max_size=60),
    count=st.integers(1, 20),
    seed=st.integers(0, 3),
)
def test_a_spread_takes_one_clip_of_every_equal_part(tmp_path_factory, values, count, seed):
    path = table(tmp_path_factory.mktemp("t") / "s.parquet", values)
    finite = sorted((v, i) for i, v in enumerate(values) if v is not None and math.isfinite(v))
    keys = LabelKeys(scores=path, choose="spread", count=count, seed=seed)
    if not finite:
        with pytest.raises(ValueError, match="no clip"):
            draw(keys)
        return
    chosen = [int(c.id[1:].split("#")[0]) for c in draw(keys).clips]
    parts = [part.tolist() for part in np.array_split([i for _, i in finite], count) if len(part)]
    assert sorted(next(p for p, part in enumerate(parts) if i in part) for i in chosen) == list(range(len(parts)))


def test_a_spread_shows_every_clip_about_equally_often_and_in_no_order(tmp_path):
    path = table(tmp_path / "s.parquet", np.random.default_rng(0).normal(size=12).tolist())
    draws = [[c.id for c in drawn_of(scores=path, choose="spread", count=4, seed=seed)] for seed in range(300)]
    times = Counter(name for draw_ in draws for name in draw_)
    assert len(times) == 12 and max(abs(n - 100) for n in times.values()) < 5 * math.sqrt(300 * 2 / 9)
    firsts = Counter(draw_[0] for draw_ in draws)
    assert len(firsts) == 12


def test_the_figure_of_a_spread(tmp_path):
    rows = [row(i, Path(f"/v/r{i}.mp4"), "a", float(i), None) for i in range(3)]
    bare = [{k: v for k, v in r.items() if k != "cosine"} for r in rows]
    with_loss = pa.Table.from_pylist([r | {"loss_vt": i / 3, "weight": i} for i, r in enumerate(bare)])
    pq.write_table(with_loss, tmp_path / "s.parquet")
    assert "spread over loss_vt" in draw(LabelKeys(scores=tmp_path / "s.parquet", choose="spread")).how
    assert "spread over weight" in draw(LabelKeys(scores=tmp_path / "s.parquet", choose="spread", by="weight")).how
    for by in ("caption", "clip", "nothing"):
        with pytest.raises(ValueError, match="no such column of numbers; it has loss_vt, weight"):
            draw(LabelKeys(scores=tmp_path / "s.parquet", choose="spread", by=by))
    pq.write_table(pa.Table.from_pylist(bare), tmp_path / "s.parquet")
    with pytest.raises(ValueError, match="it has none"):
        draw(LabelKeys(scores=tmp_path / "s.parquet", choose="spread"))


def test_pieces_in_which_a_table_is_read_change_nothing(tmp_path, monkeypatch):
    path = table(tmp_path / "s.parquet", np.random.default_rng(0).normal(size=50).tolist())
    keys = LabelKeys(scores=path, choose="spread", count=9)
    once = draw(keys)
    monkeypatch.setattr(table_of_scores, "ROWS_AT_ONCE", 3)
    assert draw(keys) == once


# ------------------------------------------------------------------------------------------------------------ the page
@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a manifest: seven clips to label of a video with sound and a mute one; one video is missing."""
    folder = tmp_path_factory.mktemp("videos")
    media.write(folder / "clips" / "loud.mp4", seconds=8, size=(64, 48))
    media.write(folder / "clips" / "mute.mp4", seconds=8, size=(64, 48), audio=False)
    said = [(1.0, 3.0, "two seconds"), (4.0, 4.1, NASTY), (0.0, 8.0, "long"), (7.8, 8.0, "the end")]
    narrations = [dict(zip(("start", "end", "text"), values, strict=True)) for values in said]
    rows = [
        {"id": "loud", "video": "clips/loud.mp4", "narrations": narrations, "group": "film"},
        {"id": "mute", "video": "clips/mute.mp4", "text": "whole"},
        {"id": "part", "video": "clips/loud.mp4", "text": "a part", "start": 2.0, "end": 4.5},
        {"id": "gone", "video": "clips/gone.mp4", "text": "nothing"},
        {"id": "held", "video": "clips/loud.mp4", "text": "held out", "split": "test"},
    ]
    write_manifest(folder / "m.jsonl", rows)
    return folder


def label(*arguments: str) -> int:
    return main(["label", *arguments])


def facts_of(page: Path) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="facts">(.*?)</script>', page.read_text())[1])


def test_the_command_writes_a_page(videos, tmp_path, capsys):
    out = tmp_path / "new" / "l.html"
    assert label(f"data={videos / 'm.jsonl'}", f"out={out}", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "7 clips would be on the page: at random from the 7 clips of" in printed
    assert f"{videos}/trusted.jsonl" in printed and not list(tmp_path.iterdir())
    assert label(f"data={videos / 'm.jsonl'}", f"out={out}") == 0
    printed = capsys.readouterr().out
    assert "1 of the clips drawn cannot be read" in printed and "gone.mp4: there is no such file" in printed
    assert f"{videos}/trusted.jsonl" in printed
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["l.html"]
    text, clips = out.read_text(), {c["row"]["id"]: c for c in facts_of(out)["clips"]}
    assert f"{videos}/trusted.jsonl" in text and "there is no such file (1)" in text
    assert not re.findall(r"https?://[^\s\"'<]+", text)  # nothing is loaded from anywhere
    assert NASTY not in text and clips["loud#1"]["row"]["text"] == NASTY
    windows = {name: (c["row"]["start"], c["row"]["end"]) for name, c in clips.items()}
    assert windows == {
        "loud#0": (1, 3), "loud#1": (3.55, 4.55), "loud#2": (1.5, 6.5), "loud#3": (7, 8), "mute#0": (1.5, 6.5),
        "part#0": (2, 4.5),
    }  # fmt: skip
    assert {name for name, c in clips.items() if not c["sound"]} == {"mute#0"}
    assert {c["row"]["group"] for name, c in clips.items() if name.startswith("loud")} == {"film"}
    expected = {
        "id": "part#0", "video": "clips/loud.mp4", "group": "part", "split": "train", "start": 2.0, "end": 4.5,
        "text": "a part",
    }  # fmt: skip
    assert list(clips["part#0"]["row"].items()) == list(expected.items())


def test_what_the_page_saves_can_be_loaded_where_it_says(videos, tmp_path, monkeypatch):
    monkeypatch.chdir(videos.parent)
    scores = write_table(tmp_path / "s.parquet", [row(0, videos / "clips" / "loud.mp4", "a", 1.0, 0.5)])
    for arguments in ([f"data={videos.name}/m.jsonl"], [f"scores={scores}"], [f"data={videos}/m.jsonl", "seconds=2"]):
        assert label(*arguments, f"out={tmp_path / 'l.html'}") == 0
        facts, text = facts_of(tmp_path / "l.html"), (tmp_path / "l.html").read_text()
        place = Path(re.search(r"as (/\S*/trusted.jsonl):", text)[1])
        place.write_text(jsonl.as_text(c["row"] | {"text_weight": 1, "sound_weight": 0} for c in facts["clips"]))
        index = load_index(place)
        place.unlink()
        assert [r["id"] for r in index] == [c["row"]["id"] for c in facts["clips"]]
        assert all(Path(r["video"]).samefile(videos / "clips" / Path(r["video"]).name) for r in index)
        assert all(r["split"] == "train" and r["end"] - r["start"] <= 5 for r in index)
        assert [r["narrations"][0]["text"] for r in index] == [c["row"]["text"] for c in facts["clips"]]
        assert {(r["narrations"][0]["weight"], r["sound_weight"]) for r in index} == {(1.0, 0.0)}


def test_behind_a_url_paths_are_whole(tmp_path):
    keys = LabelKeys(data="https://example.org/m.jsonl")
    choice = build.Choice("a#0", "https://example.org/v.mp4", "a", "", 0, 1, None)
    assert build.home(keys) is None and "anywhere" in build.advice(None)
    assert build.row_of(choice, 0, 1, tmp_path)["video"] == choice.video
    beside = build.Choice("a#0", "v.tar#3:7", "a", "", 0, 1, None)
    assert build.row_of(beside, 0, 1, None)["video"] == str(Path("v.tar#3:7").absolute())


@pytest.mark.parametrize(("seconds", "window"), [(2.0, (3.0, 5.0)), (8.0, (0.0, 8.0)), (30.0, (0.0, 8.0))])
def test_the_player_shows_and_sounds_the_seconds_asked_for(videos, tmp_path, seconds, window):
    choice = build.Choice("a#0", str(videos / "clips" / "loud.mp4"), "a", "", 3.9, 4.1, None)
    start, end, has_sound, files = build.cut_clip(choice, seconds, tmp_path)
    assert (start, end, has_sound, set(files)) == (*window, True, {".mp4", "-poster.jpg"})
    (tmp_path / "cut.mp4").write_bytes(files[".mp4"])
    with av.open(str(tmp_path / "cut.mp4")) as container:
        numbers = [media.number_of(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    assert numbers == list(range(int(10 * start), int(10 * end)))


def test_a_clip_without_text_and_sound_is_left_out(videos, tmp_path, capsys):
    rows = [row(i, videos / "clips" / f"{name}.mp4", "", 1.0, 0.1) for i, name in enumerate(("loud", "mute"))]
    scores = write_table(tmp_path / "s.parquet", rows)
    assert label(f"scores={scores}", f"out={tmp_path / 'l.html'}") == 0
    assert "neither a text nor a sound" in capsys.readouterr().out
    [clip] = facts_of(tmp_path / "l.html")["clips"]
    assert (clip["row"]["id"], clip["row"]["text"], clip["sound"]) == ("loud#0", "", True)


def test_a_page_is_known_by_its_clips(videos, tmp_path):
    def name(*arguments: str) -> str:
        assert label(f"data={videos / 'm.jsonl'}", f"out={tmp_path / 'l.html'}", *arguments) == 0
        return facts_of(tmp_path / "l.html")["name"]

    assert name() == name() != name("seconds=1")


def test_clips_that_end_the_process_that_reads_them_are_left_out(videos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(build, "cut_clip", fatal)
    assert label(f"data={videos / 'm.jsonl'}", f"out={tmp_path / 'l.html'}", "count=2") == 2
    assert "none of the 2 clips drawn can be read; the first: " in (err := capsys.readouterr().err)
    assert "signal 11" in err and not (tmp_path / "l.html").exists()


# ----------------------------------------------------------------------------------------------------------- bad input
def test_errors_say_what_to_do(videos, manifest, tmp_path, capsys):
    def fails(*arguments: str) -> str:
        assert label(f"out={tmp_path / 'l.html'}", *arguments) == 2
        return capsys.readouterr().err

    data = f"data={videos / 'm.jsonl'}"
    scores = f"scores={table(tmp_path / 's.parquet', [0.1, None])}"
    assert "data= and scores= are missing" in fails()
    assert "choose=spread needs scores=" in fails(data, "choose=spread")
    assert "by=cosine needs choose=spread" in fails(scores, "by=cosine")
    assert "split=train needs data=" in fails(scores, "split=train")
    assert "count=0 must be at least 1" in fails(data, "count=0")
    assert "seconds=0.0 must be more than 0" in fails(data, "seconds=0")
    assert "seconds=61.0 must be at most 60" in fails(data, "seconds=61")
    assert "choose" in fails(data, "choose=best")
    assert "Did you mean one of: 'count'" in fails(data, "counts=3")
    (tmp_path / "d.html").mkdir()
    assert "this is a folder" in fails(data, f"out={tmp_path / 'd.html'}")
    assert "end in .html" in fails(data, f"out={tmp_path / 'l'}")
    assert "there is nothing here" in fails(f"data={tmp_path / 'none'}")
    assert "no row has split 'dev'" in fails(data, "split=dev")
    assert "there is no such file" in fails(f"scores={tmp_path / 'none.parquet'}")
    assert "none.jsonl" in fails(data, f"exclude=[{tmp_path / 'none.jsonl'}]")
    assert "expected an object with id" in fails(data, f"exclude=[{write_manifest(tmp_path / 'x', [{'a': 1}])}]")
    only_test = write_manifest(tmp_path / "t.jsonl", [{"id": "a", "video": "v.mp4", "split": "test", "text": "a"}])
    assert "no row to train on; splits: 'test'" in fails(f"data={only_test}")
    pq.write_table(pa.table({"id": ["a"], "cosine": [0.5]}), tmp_path / "bare.parquet")
    assert "lacks column(s) video, narration, caption, start" in fails(f"scores={tmp_path / 'bare.parquet'}")
    assert not (tmp_path / "l.html").exists()
