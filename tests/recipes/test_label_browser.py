"""The labelling page in a browser, from file://: it plays, takes keys and taps, and loses no answer."""

import json
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from recipes.data.index import load_index
from recipes.figures.command import main
from recipes.figures.page_media import INLINE_PLAYERS
from tests.recipes import media
from tests.recipes.browsing import launched, needs_chromium, watched
from tests.recipes.scored import row, write_table

pytest.importorskip("playwright.sync_api", reason="needs playwright: make test-browser installs it")
pytestmark = needs_chromium

CLIPS = INLINE_PLAYERS + 4
NASTY = '</script><img src="x" onerror="alert(1)">'
SHOWN = "document.querySelector('#stage video')"
PLAYS = f"{SHOWN}.currentTime > 0.2 && !{SHOWN}.paused && {SHOWN}.webkitAudioDecodedByteCount > 0"
WINDOWS = {"desktop": (1280, 844), "phone": (390, 844)}
KEYS = {"t": "T", "s": "S", "b": "B", "n": "N", "k": "ArrowRight", "u": "Backspace"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 104 clips of a table: one whose text tries to be markup, one without sound."""
    folder = tmp_path_factory.mktemp("my data")
    loud = media.write(folder / "loud.mp4", seconds=12, size=(64, 48))
    mute = media.write(folder / "mute.mp4", seconds=2, size=(64, 48), audio=False)
    rows = [row(i, loud, f"the red dot {i}", 0.1 * i, None) | {"narration": i} for i in range(CLIPS)]
    rows[7]["caption"] = NASTY
    rows[8] |= {"video": str(mute), "start": 0.0, "end": 0.8}
    write_table(folder / "scores.parquet", rows)
    assert main(["label", f"scores='{folder / 'scores.parquet'}'", f"out='{folder / 'label #1.html'}'"]) == 0
    assert len(list((folder / "label #1_files").glob("*.mp4"))) == CLIPS - INLINE_PLAYERS
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """A browser that lets a page sound only after a key or a tap, as people's do."""
    with launched() as opened:
        yield opened


@pytest.fixture(params=WINDOWS)
def page(folder, browser, request) -> Iterator:
    """The page, opened by somebody who has not seen it before, with keys or with fingers."""
    width, height = WINDOWS[request.param]
    phone = request.param == "phone"
    context = browser.new_context(viewport={"width": width, "height": height}, has_touch=phone, is_mobile=phone)
    with watched(context.new_page(), folder / "label #1.html") as opened:
        yield opened
    context.close()


def fingers(page) -> bool:
    return page.viewport_size["width"] < 1000


def begin(page) -> None:
    page.tap("#begin") if fingers(page) else page.keyboard.press("Space")


def press(page, keys: str) -> None:
    """Press keys, or tap the buttons of them."""
    for key in keys:
        page.tap(f"[data-key={key}]") if fingers(page) else page.keyboard.press(KEYS[key])


def shown(page) -> int:
    """The number of the clip that is shown."""
    return page.evaluate("current")


def answers(page) -> list[dict]:
    """What is kept, without the times."""
    kept = json.loads(page.evaluate("localStorage.getItem(page.name) ?? '[]'"))
    return [{key: value for key, value in answer.items() if key != "seconds"} for answer in kept]


def saved(page, button: str = "#save") -> list[dict]:
    """The rows of the file that a button saves."""
    with page.expect_download() as download:
        page.click(button)
    return [json.loads(line) for line in Path(download.value.path()).read_text().splitlines()]


def load(page, name: str, text: str) -> str:
    """Load a file of answers; returns what the page says of it."""
    page.set_input_files("#load", {"name": name, "mimeType": "text/plain", "buffer": text.encode()})
    page.wait_for_selector("#message:not([hidden])")
    return page.text_content("#message")


def weights(text: int | None, sound: int | None) -> dict:
    return {name: w for name, w in (("text_weight", text), ("sound_weight", sound)) if w is not None}


def test_it_opens_and_fits_the_window(page):
    assert page.text_content("#place") == f"0 of {CLIPS}"
    begin(page)
    width, height = page.viewport_size["width"], page.viewport_size["height"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for part in ("#stage video", "#text", *(f"[data-key={key}]" for key in "tsbnku")):
        box = page.locator(part).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
        assert box["y"] >= 0 and box["y"] + box["height"] <= height  # nothing to scroll
        assert box["height"] >= 36
    assert page.locator("#help").is_visible() == page.locator("#keys kbd").first.is_visible() == (not fingers(page))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_by_day_and_by_night(page, scheme):
    page.emulate_media(color_scheme=scheme)
    begin(page)
    press(page, "t")
    ground = luminance(page, "body", "backgroundColor")
    assert ground > 0.9 if scheme == "light" else ground < 0.05
    for part in ("#text", "#fits", "#place", "summary", "[data-key=k]"):
        assert contrast(ground, luminance(page, part, "color")) >= 4.5
    marked = luminance(page, "[data-key=t]", "backgroundColor"), luminance(page, "[data-key=t]", "color")
    assert contrast(*marked) >= 4.5


def luminance(page, selector: str, property_: str) -> float:
    """The relative luminance of a colour, as WCAG defines it."""
    colour = page.locator(selector).first.evaluate(f"part => getComputedStyle(part).{property_}")
    channels = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def test_a_clip_plays_in_a_loop_with_sound_and_the_next_is_there_already(page):
    assert page.locator("video").count() == 0
    begin(page)
    page.wait_for_function(PLAYS)
    assert page.evaluate(f"{SHOWN}.loop && !{SHOWN}.muted && {SHOWN}.videoWidth === 64")
    page.evaluate(f"{SHOWN}.currentTime = 0.7")
    page.wait_for_function(f"{SHOWN}.currentTime < 0.5 && !{SHOWN}.paused")  # from the beginning again
    page.wait_for_function("ready.i === 1 && ready.video.readyState === 4")
    preloaded = page.evaluate("ready.video.src")
    press(page, "b")
    assert page.evaluate(f"{SHOWN}.src") == preloaded
    page.wait_for_function(PLAYS)
    page.tap("#stage") if fingers(page) else page.keyboard.press("Space")
    page.wait_for_selector("#stage.stopped")
    assert page.evaluate(f"{SHOWN}.paused")
    page.tap("#stage") if fingers(page) else page.keyboard.press("Space")
    page.wait_for_function(PLAYS)
    assert page.locator("video").count() == 1


def test_two_questions_are_answered_in_one_or_two_strokes(page):
    begin(page)
    strokes = {
        "ts": (1, 1),
        "st": (1, 1),
        "b": (1, 1),
        "n": (0, 0),
        "tn": (1, 0),
        "sn": (0, 1),
        "ttn": (0, 0),
        "tb": (1, 1),
    }
    special = {
        page.evaluate(f"clips.findIndex(clip => {test})") for test in ("!clip.sound", f"clip.row.text === {NASTY!r}")
    }
    for keys, (text, sound) in strokes.items():
        if shown(page) in special:
            press(page, "k")
        row = page.evaluate("clips[current].row")
        assert page.text_content("#text") == row["text"]
        before = len(answers(page))
        press(page, keys[:-1])
        assert len(answers(page)) == before
        press(page, keys[-1])
        assert answers(page)[-1] == {"id": row["id"], "skipped": False} | weights(text, sound)
        assert page.get_attribute("[data-key=t]", "aria-pressed") == "false"
    judged = [a for a in answers(page) if not a["skipped"]]
    given = [sum(a[f"{name}_weight"] for a in judged) for name in ("text", "sound")]
    skipped = len(answers(page)) - len(judged)
    fits = f"Text fits: {given[0]} of {len(judged)}. Sound fits: {given[1]} of {len(judged)}. Skipped: {skipped}."
    assert page.text_content("#fits") == fits
    assert page.text_content("#place") == f"{len(answers(page))} of {CLIPS}" and "s each" in page.text_content("#pace")


def test_the_button_for_no_says_what_it_answers(page):
    begin(page)

    def said() -> str:
        return page.text_content("[data-key=n] span")

    assert said() == "Neither fits"
    press(page, "t")
    assert said() == "Only the text" and page.get_attribute("[data-key=t]", "aria-pressed") == "true"
    press(page, "t")
    assert said() == "Neither fits"
    press(page, "s")
    assert said() == "Only the sound"


def show_clip(page, test: str) -> None:
    """Answer all clips before one, and begin with it."""
    page.evaluate(
        f"answers = clips.slice(0, clips.findIndex(clip => {test})).map(c => ({{ id: c.row.id, skipped: true }}))"
    )
    page.evaluate("keep()")
    begin(page)


def test_a_clip_without_sound_asks_for_its_text_alone(page):
    show_clip(page, "!clip.sound")
    assert page.locator("[data-key=s]").is_disabled() and page.locator("[data-key=b]").is_disabled()
    assert "No sound" in page.text_content("[data-key=s]") and page.text_content("[data-key=n] span") == "Does not fit"
    if not fingers(page):
        page.keyboard.press("s")
        page.keyboard.press("b")
    before = len(answers(page))
    press(page, "t")
    assert len(answers(page)) == before + 1 and weights(1, None).items() <= answers(page)[-1].items()
    press(page, "un")
    assert len(answers(page)) == before + 1 and "sound_weight" not in answers(page)[-1]
    assert answers(page)[-1]["text_weight"] == 0


def test_a_text_is_never_markup(page):
    show_clip(page, f"clip.row.text === {json.dumps(NASTY)}")
    assert page.text_content("#text") == NASTY and page.locator("#text img").count() == 0
    press(page, "b")
    assert saved(page)[-1]["text"] == NASTY


def test_undo_takes_marks_back_and_then_answers_also_after_a_reload(page):
    begin(page)
    assert page.locator("[data-key=u]").is_disabled()
    press(page, "bnks")
    assert (shown(page), len(answers(page))) == (3, 3)
    press(page, "u")
    assert shown(page) == 3 and page.get_attribute("[data-key=s]", "aria-pressed") == "false"
    press(page, "u")
    assert (shown(page), len(answers(page))) == (2, 2)
    page.reload()
    assert page.text_content("#begin").startswith("Go on")
    begin(page)
    assert shown(page) == 2
    press(page, "uu")
    assert (shown(page), answers(page)) == (0, [])
    press(page, "n")
    assert shown(page) == 1 and weights(0, 0).items() <= answers(page)[0].items()


def test_no_answer_is_lost_when_the_page_crashes(page):
    begin(page)
    press(page, "bnktn")
    kept, address = answers(page), page.url
    assert len(kept) == 4
    with pytest.raises(Exception, match="crash"):
        page.goto("chrome://crash")
    again = page.context.new_page()
    again.goto(address)
    assert again.text_content("#place") == f"4 of {CLIPS}" and answers(again) == kept


def test_keys_that_are_held_or_for_the_browser_answer_nothing(page):
    begin(page)
    for _ in range(3):
        page.keyboard.down("n")
    page.keyboard.up("n")
    assert len(answers(page)) == 1
    for keys in ("Control+b", "Alt+b", "Meta+n", "x", "Enter"):
        page.keyboard.press(keys)
    assert len(answers(page)) == 1


def test_the_space_bar_is_for_the_clip_after_a_click_and_for_the_button_that_is_in_focus(page):
    begin(page)
    page.wait_for_function(PLAYS)
    page.click("[data-key=b]")
    page.wait_for_function(PLAYS)
    page.keyboard.press("Space")
    assert len(answers(page)) == 1 and page.evaluate(f"{SHOWN}.paused")
    page.focus("[data-key=b]")
    page.keyboard.press("Space")
    assert len(answers(page)) == 2


def test_what_is_saved_is_read_as_data(page, folder):
    begin(page)
    press(page, "bktnn")
    rows = saved(page)
    given = [answer for answer in answers(page) if not answer["skipped"]]
    assert len(rows) == len(given) == 3
    for saved_row, answer in zip(rows, given, strict=True):
        number = int(saved_row["id"].removeprefix("loud#"))
        assert saved_row == {
            "id": answer["id"], "video": "loud.mp4", "group": "loud", "split": "train",
            "start": pytest.approx(0.1 * number), "end": pytest.approx(0.1 * number + 0.8),
            "text": f"the red dot {number}", **{name: answer[name] for name in ("text_weight", "sound_weight")},
        }  # fmt: skip
    assert f"as {folder / 'trusted.jsonl'}:" in page.text_content("footer")
    trusted = folder / "trusted.jsonl"
    trusted.write_text("".join(json.dumps(row) + "\n" for row in rows))
    index = load_index(trusted)
    trusted.unlink()
    assert [row["id"] for row in index] == [row["id"] for row in rows]
    assert all(Path(row["video"]).samefile(folder / "loud.mp4") for row in index)
    read = [(row["narrations"][0]["weight"], row["sound_weight"]) for row in index]
    assert read == [(1, 1), (1, 0), (0, 0)]


def test_answers_go_on_in_another_browser(page, browser, folder):
    begin(page)
    press(page, "bnktn")
    everything, trusted, kept = saved(page, "#backup"), saved(page), answers(page)
    context = browser.new_context(viewport=page.viewport_size, has_touch=fingers(page))
    with watched(context.new_page(), folder / "label #1.html") as other:
        assert answers(other) == []
        said = load(other, "answers.jsonl", "".join(json.dumps(row) + "\n" for row in everything))
        assert said == "4 answers are loaded." and answers(other) == kept
        assert other.text_content("#place") == f"4 of {CLIPS}"
        begin(other)
        assert shown(other) == 4
        press(other, "b")
        assert saved(other)[:3] == trusted
        flipped = [row | {"text_weight": 1 - row["text_weight"]} for row in trusted]
        lines = "".join(json.dumps(row) + "\n" for row in [*flipped, {"id": "stranger#0", "text_weight": 1}, {"id": 1}])
        assert load(other, "trusted.jsonl", lines) == "3 answers are loaded, 2 lines are of other clips."
        assert saved(other)[:3] == flipped and len(answers(other)) == 5
        for text in ("no json", '{"id": "loud#1"', "[1, 2", "\x00\x01"):
            assert load(other, "bad.jsonl", text).startswith("bad.jsonl cannot be loaded: expected the lines")
        assert len(answers(other)) == 5
    context.close()


def test_two_tabs_share_their_answers(page, folder):
    begin(page)
    press(page, "b")
    with watched(page.context.new_page(), folder / "label #1.html") as other:
        begin(other)
        assert shown(other) == 1
        press(other, "nn")
        page.wait_for_function("answers.length === 3")
        assert page.text_content("#place") == f"3 of {CLIPS}" and shown(page) == 3
    other.close()


def test_all_clips_of_the_page_and_of_the_folder_can_be_answered(page):
    begin(page)
    for _ in range(INLINE_PLAYERS):
        press(page, "n")
    assert page.evaluate(f"{SHOWN}.getAttribute('src')").startswith("label%20%231_files/clip-")
    page.wait_for_function(PLAYS)
    press(page, "nnn")
    assert page.locator("#end").is_hidden()
    press(page, "b")
    assert page.locator("#end").is_visible() and page.locator("video").count() == 0
    assert page.text_content("#place") == f"{CLIPS} of {CLIPS}" and page.locator("[data-key=n]").is_hidden()
    rows = saved(page)
    assert [row["id"] for row in rows] == page.evaluate("clips.map(clip => clip.row.id)")
    press(page, "u")
    assert (shown(page), page.locator("#end").is_visible()) == (CLIPS - 1, False)
    page.wait_for_function(PLAYS)


def test_from_a_plain_server_clips_of_the_folder_play_as_well(folder, browser):
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/label%20%231.html")
        page.evaluate(f"answers = clips.slice(0, {INLINE_PLAYERS}).map(c => ({{ id: c.row.id, skipped: true }}))")
        page.keyboard.press("Space")
        for _ in range(2):
            page.wait_for_function(PLAYS)
            page.evaluate(f"{SHOWN}.currentTime = 0.7")
            page.wait_for_function(f"{SHOWN}.currentTime < 0.5 && !{SHOWN}.paused")
            page.keyboard.press("n")
        page.close()
        server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    """Python's own server, which sends files whole, without its log."""

    def log_message(self, *arguments: object) -> None:
        pass


def test_a_page_whose_media_are_gone_says_so(folder, browser, tmp_path):
    moved = tmp_path / "label #1.html"
    moved.write_bytes((folder / "label #1.html").read_bytes())
    page = browser.new_page()
    page.goto(moved.as_uri())
    page.evaluate(f"answers = clips.slice(0, {INLINE_PLAYERS - 1}).map(c => ({{ id: c.row.id, skipped: true }}))")
    page.keyboard.press("Space")
    page.wait_for_function("ready.video.error")  # the one ahead is noticed when it is shown, not before
    assert page.locator("#message").is_hidden()
    page.keyboard.press("k")
    assert "Is the folder of its media beside this page?" in page.text_content("#message")
    page.keyboard.press("k")
    page.wait_for_function("document.getElementById('message').textContent.includes('folder of its media')")
    page.close()


def test_a_browser_that_keeps_nothing_is_noticed_and_the_answers_can_be_saved(folder, browser):
    page = browser.new_page()
    page.add_init_script("Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }")
    page.goto((folder / "label #1.html").as_uri())
    page.keyboard.press("Space")
    page.keyboard.press("b")
    assert "does not let the page keep answers" in page.text_content("#message")
    page.keyboard.press("n")
    assert [(row["text_weight"], row["sound_weight"]) for row in saved(page)] == [(1, 1), (0, 0)]
    page.close()
