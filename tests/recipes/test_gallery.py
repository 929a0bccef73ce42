"""The gallery: the draw, the rule for aligned words, what is cut out of the videos, the page and the sheet."""

import base64
import math
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from recipes import config as configuration
from recipes.config import ClipFormat
from recipes.data import vocabulary
from recipes.data.decode import BrokenClip
from recipes.figures.command import main
from recipes.figures.gallery import media, sample
from recipes.figures.gallery.media import Row
from recipes.figures.gallery.page import Card, Media, page
from recipes.figures.gallery.sample import GalleryKeys, draw
from recipes.figures.gallery.sheet import CELL, LINES, WIDTH, break_lines, draw_sheet, font
from recipes.figures.gallery.words import (
    FEWEST,
    THRESHOLD,
    Caption,
    most_aligned,
    p_values,
    pieces,
    share_aligned,
    variants,
)
from recipes.model.build import model_inputs
from recipes.restore import restore
from tests.recipes import media as files
from tests.recipes.conftest import DEMO, TINY
from tests.recipes.faulty import fatal
from tests.recipes.scored import row, write_checkpoint, write_table

FMT = ClipFormat(frames=4, fps=10.0, size=32)
NASTY = "the <b>red</b> dot </script><script>alert(1)</script> & “more”"


# ---------------------------------------------------------------------------------------------------- the aligned words
def p_by_hand(text, without, own, others):
    """The rule as the module's docstring states it, number by number."""

    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    p = []
    for shorter in without:
        own_drop, *drops = [cosine(text, video) - cosine(shorter, video) for video in [own, *others]]
        z = (own_drop - statistics.mean(drops)) / statistics.stdev(drops)
        p.append(1 - statistics.NormalDist().cdf(z) if own_drop > statistics.mean(drops) else 1.0)
    return p


@pytest.mark.parametrize("seed", range(5))
def test_p_values_are_those_of_the_stated_rule(seed):
    generator = torch.Generator().manual_seed(seed)
    text, own = (torch.randn(6, generator=generator) for _ in range(2))
    without, others = (torch.randn(n, 6, generator=generator) for n in (4, 37))
    expected = p_by_hand(text.tolist(), without.tolist(), own.tolist(), others.tolist())
    assert p_values(text, without, own, others).tolist() == pytest.approx(expected, abs=1e-12)


def test_a_word_that_only_its_own_video_shows_is_aligned_and_one_of_all_videos_is_not():
    everywhere, here, elsewhere = torch.eye(3)
    generator = torch.Generator().manual_seed(0)
    others = everywhere + 0.1 * torch.randn(199, 1, generator=generator) * elsewhere
    p = p_values(everywhere + here, torch.stack([everywhere, here]), everywhere + here, others)
    assert p[0] < 1e-6  # without "here"
    assert p[1] == 1  # without "everywhere"


@pytest.mark.parametrize(("share", "aligned"), [(0.1, True), (0.2, True), (0.3, False), (0.5, False)])
def test_a_word_may_suit_some_other_videos_but_not_a_third_of_them(share, aligned):
    other, colour = torch.eye(2)
    suited = int(200 * share)
    others = torch.cat([colour.expand(suited, 2), other.expand(200 - suited, 2)])
    [p] = p_values(other + colour, other[None], colour, others).tolist()
    assert (p <= THRESHOLD) == aligned
    assert p == pytest.approx(1 - statistics.NormalDist().cdf(math.sqrt((1 - share) / share)), rel=0.05)


def test_words_that_have_nothing_to_do_with_the_video_pass_at_the_rate_of_chance():
    generator = torch.Generator().manual_seed(0)
    text, *videos = torch.randn(1 + 2000, 32, generator=generator)
    passed, trials = 0, 2000
    for own in videos:
        others = torch.randn(200, 32, generator=generator)
        passed += int((p_values(text, torch.randn(1, 32, generator=generator), own, others) <= 0.05).sum())
    assert abs(passed / trials - 0.05) < 4 * math.sqrt(0.05 * 0.95 / trials)


def test_ties_too_few_others_and_what_is_not_finite_count_against_a_word():
    text, without, own = torch.randn(5), torch.randn(2, 5), torch.randn(5)
    assert p_values(text, without, own, own.expand(30, 5)).tolist() == [1, 1]
    assert p_values(text, without, torch.full((5,), math.nan), torch.randn(30, 5)).tolist() == [1, 1]
    shown, told = torch.eye(5)[:2]
    others = torch.eye(5)[2] + 0.1 * torch.randn(FEWEST, 5)
    assert p_values(shown + told, told[None], shown, others) <= 0.05
    assert p_values(shown + told, told[None], shown, others[1:]).tolist() == [1]


def test_variants_leave_one_word_out_each():
    tokenizer = vocabulary.build(["a red dot"])
    a, red, _, dot, blinks = tokenizer.encode("A red, RED dot blinks").ids
    assert blinks == vocabulary.UNKNOWN
    assert variants([a, red, red, dot, blinks], 6).tolist() == [
        [a, red, red, dot, blinks, 0],
        [red, red, dot, blinks, 0, 0],
        [a, red, dot, blinks, 0, 0],
        [a, red, dot, blinks, 0, 0],
        [a, red, red, blinks, 0, 0],
        [a, red, red, dot, 0, 0],
    ]
    assert variants([red], 2).tolist() == [[red, 0], [0, 0]]
    assert variants([], 2).tolist() == [[0, 0]]


@given(st.text("ab ½ﬁ'’-\u0301É🎈\n", max_size=30))
def test_words_stand_where_they_are_found(caption):
    encoding = vocabulary.build(["a b ab ba"]).encode(caption)
    tested = [(start, end, 0.5) for start, end in encoding.offsets]
    assert "".join(text for text, _ in pieces(caption, tested)) == caption
    for (start, end), token in zip(encoding.offsets, encoding.ids, strict=True):
        if token > vocabulary.UNKNOWN:
            assert caption[start:end] in ("a", "b", "ab", "ba")


def of(*p: float | None) -> Caption:
    return Caption([(f"w{i}", value) for i, value in enumerate(p)], references=99)


def test_the_share_of_aligned_words():
    judged = [of(0.01, 0.05, None, 0.2), of(0.5), of(None), of(0.051, 0.9, 0.01)]
    share = share_aligned(judged, ["x", "x", "y", "z"], seed=0)
    assert (share.aligned, share.known, share.value) == (3, 7, 3 / 7)
    # Resampling three videos of (2 of 4, 0 of 0, 1 of 3): the extremes are three times x and three times z.
    assert (share.low, share.high) == pytest.approx((1 / 3, 1 / 2))
    none = share_aligned([of(*[0.5] * 11), of(*[0.5] * 12)], ["x", "y"], seed=0)
    assert (none.aligned, none.known, none.value, none.low) == (0, 23, 0.0, 0.0)
    assert none.high == pytest.approx(1.959964**2 / (23 + 1.959964**2))  # Wilson's: every draw of the bootstrap is 0
    assert share_aligned([of(None)], ["x"], seed=0).known == 0
    assert share_aligned([], [], seed=0).known == 0
    assert most_aligned(judged, 5) == [("w0", 1, 3), ("w1", 1, 2), ("w2", 1, 1)]


# ----------------------------------------------------------------------------------------------------------- the draw
def table(path: Path, cosines: list[float | None], **metadata) -> Path:
    rows = [row(100 + i, Path(f"/v/{i}.mp4"), f"caption {i}", i, cosine) for i, cosine in enumerate(cosines)]
    return write_table(path, rows, **metadata)


@given(seed=st.integers(0, 9), share=st.sampled_from([0.05, 0.1, 0.33, 0.5]), count=st.sampled_from([1, 3, 50]))
def test_groups_are_the_two_ends(tmp_path_factory, seed, share, count):
    rng = np.random.default_rng(seed)
    cosines = [None if rng.random() < 0.2 else float(np.float32(rng.normal())) for _ in range(60)]
    cosines[7], cosines[8] = math.nan, 2.0
    drawn = draw(table(tmp_path_factory.mktemp("t") / "s.parquet", cosines, step=4), share, count, seed, 20)
    there = sorted(c for c in cosines if c is not None and not math.isnan(c))
    size = max(1, int(share * len(there)))
    assert drawn.size == size and drawn.cuts == {"top": there[-size], "bottom": there[size - 1]}
    for group, expected in {"top": there[-size:], "bottom": there[:size]}.items():
        rows = drawn.groups[group]
        assert len({r.clip for r in rows}) == len(rows) == min(count, size)
        assert {r.cosine for r in rows} <= set(expected)
        assert all(cosines[r.clip - 100] == r.cosine and r.id == str(r.clip - 100) for r in rows)
    assert (drawn.scored, drawn.defined, sum(drawn.histogram)) == (60, len(there), len(there))
    assert len({r.clip for r in drawn.references}) == 20 and {r.cosine for r in drawn.references} <= set(there)
    assert drawn.metadata == {"step": 4}


def test_the_draw_is_fixed_by_its_seed_and_not_by_how_the_table_is_read(tmp_path, monkeypatch):
    path = table(tmp_path / "s.parquet", np.random.default_rng(0).normal(size=500).tolist())
    once, other = draw(path, 0.2, 10, 0, 5), draw(path, 0.2, 10, 1, 5)
    monkeypatch.setattr(sample, "ROWS_AT_ONCE", 3)
    assert draw(path, 0.2, 10, 0, 5) == once
    assert {r.clip for r in other.groups["top"]} != {r.clip for r in once.groups["top"]}
    order = [r.cosine for r in once.groups["top"]]
    assert order != sorted(order) and order != sorted(order, reverse=True)  # drawn, not the most extreme first


def test_equal_cosines_make_groups_of_the_size_asked_for(tmp_path):
    drawn = draw(table(tmp_path / "s.parquet", [0.5] * 10), 0.5, 50, 0, 5)
    assert len({r.clip for rows in drawn.groups.values() for r in rows}) == 10


# ---------------------------------------------------------------------------------------------------------- the media
def shown_of(path: Path, start: float, seconds: float, folder: Path) -> media.Shown:
    return media.cut_clip(Row(3, "x", str(path), "", start, start + seconds, 0.0), FMT, folder)


def strip_width(width: int) -> int:
    return media.KEY_FRAMES * width + (media.KEY_FRAMES - 1) * media.GAP


@pytest.mark.parametrize("rotation", [0, 90])
def test_the_player_shows_and_sounds_the_window(tmp_path, rotation):
    video = files.write(tmp_path / "v.mp4", fps=10, size=(96, 64), rotation=rotation)
    shown = shown_of(video, 2.0, 1.0, tmp_path)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(shown.files[".mp4"])
    with av.open(str(cut)) as container:
        assert [s.codec_context.name for s in container.streams] == ["h264", "aac"]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(str(cut)) as container:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    upright = [np.rot90(frame, -1) if rotation else frame for frame in frames]
    assert [files.number_of(frame) for frame in upright] == list(range(20, 30))
    assert frames[0].shape[:2] == ((96, 64) if rotation else (64, 96))
    assert files.frequency_of(sound[2000:22000], media.SAMPLE_RATE) == pytest.approx(files.tone(2), abs=5)
    width = frames[0].shape[1]
    keys = [shown.strip[:, first : first + width] for first in range(0, shown.strip.shape[1], width + media.GAP)]
    keys = [np.rot90(frame, -1) if rotation else frame for frame in keys]
    assert [files.number_of(frame) for frame in keys] == [21, 23, 26, 28]
    assert shown.ratio == round(shown.strip.shape[1] / shown.strip.shape[0], 3)
    view = np.rot90(shown.video, -1, axes=(1, 2)) if rotation else shown.video
    assert view.shape == (4, 32, 32, 3)
    assert {p.name for p in tmp_path.iterdir()} == {"v.mp4", "cut.mp4"}


def test_odd_sides_large_pictures_and_silence_can_be_cut(tmp_path):
    tall = files.write(tmp_path / "tall.mp4", seconds=1, size=(270, 482), audio=False)
    shown = shown_of(tall, 0.0, 0.55, tmp_path)
    assert shown.strip.shape == (320, strip_width(180), 3)  # 321 rows would be odd
    assert shown.outline == []
    slow = files.write(tmp_path / "slow.mp4", seconds=3, fps=1)
    short = media.cut_clip(Row(1, "x", str(slow), "", 0, 0.1, 0.0), FMT, tmp_path)
    assert short.strip.shape[1] == strip_width(96)


def test_the_outline_is_the_loudness():
    sound = np.concatenate([np.zeros(3000), np.full(3000, -0.25), np.full(6000, 0.5)]).astype(np.float32)
    assert media.outline(sound) == [0.0] * 15 + [0.5] * 15 + [1.0] * 30
    assert media.outline(np.zeros(10, np.float32)) == [0.0] * media.OUTLINE


@pytest.mark.parametrize("seconds", [0.0, -1.0, 1e9, math.nan])
def test_an_impossible_window_is_a_broken_clip(tmp_path, seconds):
    with pytest.raises(BrokenClip, match="window"):
        shown_of(files.write(tmp_path / "v.mp4"), 1.0, seconds, tmp_path)


# ----------------------------------------------------------------------------------------------------------- the page
@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with scores.parquet: 44 clips of 12 videos; one clip of either end is missing, one has no cosine."""
    folder = tmp_path_factory.mktemp("scored")
    videos = [files.write(folder / f"v{i}.mp4", seconds=2, size=(64, 48)) for i in range(11)]
    texts = ["a red dot", "the blue star blinks", NASTY, "hm unheard"]
    rows = [row(i, videos[i % 11], texts[i % 4], 0.1 * (i % 8), i / 25 - 0.8) for i in range(42)]
    rows[1]["video"] = rows[40]["video"] = str(folder / "missing.mp4")
    rows += [row(42, videos[0], "a red dot", 0, None), row(43, videos[0], "a", 0, math.nan)]
    config = configuration.load(DEMO, TINY)
    place = write_checkpoint(folder / "checkpoints", config, texts[:3])
    write_table(folder / "scores.parquet", rows, checkpoint=str(place), step=1, data="here & there", split="test")
    return folder


def gallery(scored: Path, out: Path, *more: str) -> int:
    return main(["gallery", f"scores={scored / 'scores.parquet'}", f"out={out}", "share=0.5", *more])


class Cards(HTMLParser):
    """Reads the cards of a page: group, id, cosine, number of aligned words, address of the clip, pieces."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows, self.group, self.pieces, self.p = [], "", None, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag == "section":
            self.group = values["id"]
        elif tag == "article":
            self.rows.append({"group": self.group, "aligned": int(values["data-aligned"]), "pieces": []})
            self.rows[-1] |= {"id": values["data-id"], "cosine": float(values["data-cosine"])}
        elif tag == "video":
            self.rows[-1]["src"] = values["data-src"]
        elif values.get("class") == "caption":
            self.pieces = self.rows[-1]["pieces"]
        elif self.pieces is not None:
            self.p = float(values["title"].removeprefix("p = "))

    def handle_endtag(self, tag):
        self.p = None
        if tag == "p":
            self.pieces = None

    def handle_data(self, text):
        if self.pieces is not None:
            self.pieces.append((text, self.p))


def rows_of(text: str) -> list[dict]:
    rows = Cards(text).rows
    for r in rows:
        r["pieces"][0] = (r["pieces"][0][0].removeprefix("“"), r["pieces"][0][1])
        r["pieces"][-1] = (r["pieces"][-1][0].removesuffix("”"), r["pieces"][-1][1])
        r["caption"] = "".join(text for text, _ in r["pieces"])
    return rows


def test_clips_that_end_the_process_that_reads_them_are_left_out(scored, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(media, "cut_clip", fatal)
    assert gallery(scored, tmp_path / "g.html") == 2
    assert "clips drawn can be read; the first: " in (err := capsys.readouterr().err) and "signal 11" in err


def test_the_command_writes_a_page_and_a_sheet(scored, tmp_path, capsys):
    assert gallery(scored, tmp_path / "new" / "g.html", "--dry-run") == 0
    assert "21 of the top 50% and 21 of the bottom 50% would be shown" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert gallery(scored, Path(__file__) / "g.html", "--dry-run") == 2
    assert gallery(scored, tmp_path / "g.html", "--dry-run", "checkpoint=nowhere") == 2
    assert "no folder" in (errors := capsys.readouterr().err) and "nowhere: no checkpoint here" in errors
    assert gallery(scored, tmp_path / "new" / "g.html") == 0
    out = capsys.readouterr().out
    assert "2 of the clips drawn cannot be read" in out and "missing.mp4" in out
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"g.html", "g.png"}
    page = (tmp_path / "new" / "g.html").read_text()
    shown = rows_of(page)
    cosines = {group: sorted(r["cosine"] for r in shown if r["group"] == group) for group in ("top", "bottom")}
    assert cosines["bottom"] == pytest.approx([i / 25 - 0.8 for i in range(21) if i != 1])
    assert cosines["top"] == pytest.approx([i / 25 - 0.8 for i in range(21, 42) if i != 40])
    assert "2 clip(s) drawn cannot be read" in page and "there is no such file (2)" in page
    assert "here &amp; there" in page and "44 clips, 42 of them with a cosine" in page
    assert "cosine at least +0.040" in page and "at most +0.000" in page
    assert not re.findall(r"https?://[^\s\"'<]+", page)  # nothing is loaded from anywhere
    assert NASTY not in page and "<b>red" not in page  # captions are never markup
    assert any(r["caption"] == NASTY for r in shown)
    for r in shown:
        tested = {text.lower() for text, p in r["pieces"] if p is not None}
        known = [] if r["caption"] == "hm unheard" else re.findall(r"\w+", r["caption"])[:8]
        assert tested == {text.lower() for text in known}
        assert r["aligned"] == sum(p is not None and p <= 0.05 for _, p in r["pieces"])
        assert base64.b64decode(r["src"].removeprefix("data:video/mp4;base64,"))[4:8] == b"ftyp"


def test_the_words_of_the_page_are_those_of_the_rule(scored, tmp_path):
    """Against the whole model as training calls it, windows read anew, and the rule by hand."""
    assert gallery(scored, tmp_path / "g.html") == 0
    drawn = draw(scored / "scores.parquet", 0.5, 50, 0, 256)
    model = restore(scored / "checkpoints")
    model.modules.eval()
    config = model.config
    readable = [r for r in drawn.references if Path(r.video).exists()]

    def embed(rows, texts):
        batch = {
            "video": torch.from_numpy(np.stack([media.model_view(r, config.clip) for r in rows])),
            "audio": torch.zeros(len(rows), config.clip.samples),
            "text": torch.from_numpy(np.stack([texts] * len(rows))),
            "audio_valid": torch.ones(len(rows), dtype=bool),
            "text_valid": torch.ones(len(rows), len(texts), dtype=bool),
            "text_key": torch.zeros(len(rows), len(texts), dtype=torch.int64),
            "index": torch.arange(len(rows)),
        }
        with torch.inference_mode():
            return model.modules["objective"].project(model.modules["model"](**model_inputs(batch, "cpu")))["vt"]

    checked = []
    for shown in rows_of((tmp_path / "g.html").read_text())[:8]:
        [own] = [r for r in readable if r.cosine == pytest.approx(shown["cosine"], abs=1e-4)]
        ids = model.tokenizer.encode(own.caption).ids[: config.clip.words]
        others = [r for r in readable if r.video != own.video]
        video, text = embed([own, *others], variants(ids, config.clip.words))
        expected = p_by_hand(text[0, 0].tolist(), text[0, 1:].tolist(), video[0].tolist(), video[1:].tolist())
        expected = [p for p, word in zip(expected, ids, strict=True) if word != vocabulary.UNKNOWN]
        got = [p for _, p in shown["pieces"] if p is not None]
        assert got == pytest.approx(expected, abs=1.5 / len(others))  # float32: a tie may fall either way
        checked += zip(got, expected, strict=True)
    assert len({round(p, 2) for p, _ in checked}) >= 8
    assert np.mean([abs(a - b) < 1e-3 for a, b in checked]) > 0.8


def clip_at(clip: int, folder: Path, caption: Caption | None = None, place: Media | None = None):
    """A card of a clip, and what is shown of it."""
    video = folder / "v.mp4"
    if not video.exists():
        files.write(video, seconds=1)
    r = Row(clip, "v", str(video), "a red dot", 0.0, 0.5, 0.25)
    shown = media.cut_clip(r, FMT, folder)
    addresses = (place or Media(folder / "g.html")).add(clip, shown.files)
    return Card(
        r, caption or Caption([("a red ", None), ("dot", 0.01)], 200), shown.outline, shown.ratio, addresses
    ), shown


def page_of(cards: list[Card], scored: Path) -> str:
    sample, keys = draw(scored / "scores.parquet", 0.5, 3, 0, 9), GalleryKeys(scores=scored, share=0.5)
    return page({"top": cards, "bottom": []}, sample, keys, 8, [])


def test_what_the_page_may_not_hold_goes_beside_it(scored, tmp_path):
    files_of_one = clip_at(0, tmp_path)[1].files
    size = sum(map(len, clip_at(0, tmp_path)[0].addresses.values()))
    for players, budget, inlined in ((2, 10**9, 2), (100, 3 * size, 3), (100, size - 1, 0), (100, 10**9, 5)):
        place = Media(tmp_path / "my gallery.html", players, budget)
        text = page_of([clip_at(clip, tmp_path, place=place)[0] for clip in range(5)], scored)
        place.remove_old()
        assert text.count("data:video/mp4;base64,") == inlined
        assert sum(map(len, re.findall(r'"(data:[^"]+;base64,[^"]*)"', text))) <= budget
        folder = tmp_path / "my gallery_files"
        beside = {p.name for p in folder.iterdir()} if folder.exists() else set()
        assert beside == {f"clip-{clip}{suffix}" for clip in range(inlined, 5) for suffix in files_of_one}
        assert all(f'"my%20gallery_files/{name}"' in text for name in beside)


def test_media_of_an_earlier_page_go_and_files_of_others_stay(tmp_path):
    folder = tmp_path / "g_files"
    folder.mkdir()
    (folder / "clip-77.mp4").touch()
    (folder / "clip-notes.txt").write_text("mine")
    place = Media(tmp_path / "g.html", inline_players=0)
    clip_at(1, tmp_path, place=place)
    place.remove_old()
    assert {p.name for p in folder.iterdir()} == {"clip-1.mp4", "clip-1.jpg", "clip-1-poster.jpg", "clip-notes.txt"}


def test_a_page_with_too_few_others_says_so(scored, tmp_path):
    few, enough = (Caption([("dot", 0.2)], number) for number in (FEWEST - 1, FEWEST))
    assert "no word can pass" in page_of([clip_at(1, tmp_path, few)[0]], scored)
    text = page_of([clip_at(1, tmp_path, enough)[0]], scored)
    assert "no word can pass" not in text and "for 19 other" in text and "about 5% of the words" in text


# ---------------------------------------------------------------------------------------------------------- the sheet
def greens(picture: Image.Image) -> int:
    r, g, b = np.asarray(picture).astype(int).transpose(2, 0, 1)
    return int(((g > 100) & (g - r > 60) & (g - b > 40)).sum())


def test_the_sheet_is_a_column_wide_and_marks_aligned_words(scored, tmp_path):
    drawn = draw(scored / "scores.parquet", 0.5, 3, 0, 9)

    def sheet(*pieces: tuple[str, float | None]) -> Image.Image:
        return draw_sheet({"top": [clip_at(1, tmp_path, Caption(list(pieces), 200))], "bottom": []}, drawn, 0.5)

    without, marked = sheet(("a red dot " * 40, None)), sheet(("a ", None), ("red", 0.05), (" dot", 0.2))
    assert without.width == marked.width == WIDTH
    assert greens(without) == 0 and greens(marked) > 50
    assert without.height > marked.height  # more lines, but no more than a few
    assert sheet(("word " * 900, None)).height == without.height
    assert gallery(scored, tmp_path / "g.html") == 0
    with Image.open(tmp_path / "g.png") as picture:
        assert picture.size[0] == WIDTH and picture.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_no_line_of_the_sheet_is_wider_than_its_cell():
    start, end = [("now look at the ", None), ("checked", 0.01), (", very ", None)], [(" star\nhere", None)]
    lines = break_lines(Caption([*start, ("violet", 0.3), *end], 9))
    assert 1 < len(lines) <= LINES
    assert "".join(text for line in lines for text, _ in line) == "now look at the checked, very violet star here"
    for line in lines:
        text = "".join(text for text, _ in line)
        width = sum(font(bold).getlength(text) for text, bold in line)
        assert width - (font().getlength(" ") if text.endswith(" ") else 0) <= CELL


# ---------------------------------------------------------------------------------------------------------- bad input
def fails(capsys, *arguments: str) -> str:
    assert main(["gallery", *arguments]) == 2
    return capsys.readouterr().err


def test_errors_say_what_to_do(scored, tmp_path, capsys):
    out = f"out={tmp_path / 'g.html'}"
    good = f"scores={scored / 'scores.parquet'}"
    (tmp_path / "text.parquet").write_text("no table")
    table(tmp_path / "few.parquet", [0.1, None, math.nan])
    table(tmp_path / "empty.parquet", [])
    unnamed = table(tmp_path / "unnamed.parquet", [0.1, 0.2])
    table(tmp_path / "moved.parquet", [0.1, 0.2], checkpoint="/moved/away")
    for name, message in {
        "none": "there is no such file",
        "text": "not a Parquet file",
        "few": "1 of 3 clips have a cosine",
        "empty": "0 of 0 clips",
        "unnamed": "give checkpoint=",
        "moved": "/moved/away: the checkpoint",
    }.items():
        assert message in fails(capsys, f"scores={tmp_path / name}.parquet", out)
    assert "no checkpoint here" in fails(capsys, good, out, f"checkpoint={tmp_path}")
    lost = fails(capsys, f"scores={unnamed}", out, f"checkpoint={scored / 'checkpoints'}")
    assert "are the videos in place?" in lost
    assert "share=0.6 must be at most 0.5" in fails(capsys, good, out, "share=0.6")
    assert "share=0.0 must be more than 0" in fails(capsys, good, out, "share=0")
    assert "count=0 must be at least 1" in fails(capsys, good, out, "count=0")
    assert "end in .html" in fails(capsys, good, f"out={tmp_path / 'g'}")
    assert not (tmp_path / "g.html").exists()


def test_a_table_without_a_column_is_refused(tmp_path, capsys):
    pq.write_table(pa.table({"clip": [1], "cosine": [0.5]}), tmp_path / "s.parquet")
    error = fails(capsys, f"scores={tmp_path / 's.parquet'}", f"out={tmp_path / 'g.html'}")
    assert "lacks column(s) id, video, caption, start, end" in error


def test_the_checkpoint_can_be_given(scored, tmp_path):
    rows = [row(i, scored / f"v{i}.mp4", "a red dot", 0, i / 10) for i in range(4)]
    moved = write_table(tmp_path / "s.parquet", rows, checkpoint="/moved/away")
    arguments = ["gallery", f"scores={moved}", f"out={tmp_path / 'g.html'}", "share=0.5"]
    assert main([*arguments, f"checkpoint={scored / 'checkpoints'}"]) == 0
    assert "no word can pass" in (tmp_path / "g.html").read_text()  # three other clips are too few
