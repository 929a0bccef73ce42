"""The gallery in a browser, from file://: it opens without an error, plays, filters, pages, and fits a phone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from recipes import config as configuration
from recipes.figures.command import main
from recipes.figures.gallery.page import PER_PAGE
from recipes.figures.page_media import INLINE_PLAYERS
from tests.recipes import media
from tests.recipes.browsing import launched, needs_chromium, watched
from tests.recipes.conftest import DEMO, TINY
from tests.recipes.scored import row, write_checkpoint, write_table

pytest.importorskip("playwright.sync_api", reason="needs playwright: make test-browser installs it")
pytestmark = needs_chromium

EACH = 56  # clips of a group: more than half of what is inlined
HIGH, LOW = 0.5, -0.5  # cosines of the groups begin here
NASTY = '</script><img src="x" onerror="alert(1)">'
PLAY = """async video => {
    await video.play();
    for (let i = 0; i < 100 && video.currentTime < 0.2; i++) await new Promise(done => setTimeout(done, 50));
    return { time: video.currentTime, width: video.videoWidth, sound: video.webkitAudioDecodedByteCount };
}"""


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery of 112 clips: one star among the top captions, one caption that tries to be markup."""
    folder = tmp_path_factory.mktemp("a gallery")
    videos = [media.write(folder / f"video{i}.mp4", seconds=13, size=(64, 48)) for i in range(8)]
    rows = []
    for i in range(2 * EACH):
        cosine = HIGH + 0.001 * i if i < EACH else LOW - 0.001 * (i - EACH)
        caption = {5: "a blue star", 6: NASTY}.get(i, f"the red dot {i}")
        rows.append(row(i, videos[i % 8], caption, 0.1 * i, cosine))
    place = write_checkpoint(folder / "checkpoints", configuration.load(DEMO, TINY), [r["caption"] for r in rows])
    scores = write_table(folder / "scores.parquet", rows, checkpoint=str(place))
    page = folder / "gallery #1.html"
    assert main(["gallery", f"scores='{scores}'", f"out='{page}'", "share=0.5", f"count={EACH}"]) == 0
    assert len(list((folder / "gallery #1_files").glob("*.mp4"))) == 2 * EACH - INLINE_PLAYERS
    return page


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """A browser in which clips play without being asked to."""
    with launched("--autoplay-policy=no-user-gesture-required") as opened:
        yield opened


@pytest.fixture(params=[1280, 390], ids=["desktop", "phone"])
def page(gallery, browser, request) -> Iterator:
    """The gallery, opened."""
    with watched(browser.new_page(viewport={"width": request.param, "height": 844}), gallery) as opened:
        yield opened
    opened.close()


def visible(page, selector: str):
    return page.locator(f"{selector} >> visible=true")


def count(page, selector: str) -> int:
    return visible(page, selector).count()


def notes(page) -> list[str]:
    return page.locator(".count").all_text_contents()


def test_it_opens_and_fits_the_window(page):
    assert (count(page, "#top article"), count(page, "#bottom article")) == (PER_PAGE, PER_PAGE)
    assert notes(page) == [f"1 to {PER_PAGE} of {EACH}"] * 2
    for image in visible(page, "img.frames").all():  # they load when they come near
        image.scroll_into_view_if_needed()
    images = "[...document.querySelectorAll('article:not([hidden]) img')]"
    page.wait_for_function(f"{images}.every(image => image.complete && image.naturalWidth > 0)")
    page.locator("details").first.evaluate("details => { details.open = true; }")
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= page.viewport_size["width"]
    top, bottom = (page.locator(f"#{group}").bounding_box() for group in ("top", "bottom"))
    if page.viewport_size["width"] > 1000:
        assert top["y"] == bottom["y"] and top["x"] + top["width"] < bottom["x"]  # side by side
    else:
        assert top["y"] + top["height"] <= bottom["y"] + 1
        sizes = visible(page, ".caption").evaluate_all("all => all.map(p => parseFloat(getComputedStyle(p).fontSize))")
        assert min(sizes) >= 16


def test_inlined_clips_and_those_in_the_folder_play_with_sound(page):
    assert visible(page, "video").first.get_attribute("src").startswith("blob:")
    first = visible(page, "video").first.evaluate(PLAY)
    assert first["time"] >= 0.2 and first["width"] == 64 and first["sound"] > 0
    second = visible(page, "video").nth(1).evaluate(PLAY)
    assert second["time"] >= 0.2
    assert visible(page, "video").first.evaluate("video => video.paused")  # one at a time
    for _ in range(5):
        page.locator("footer [data-turn='1']").click()
    last = visible(page, "video").last
    assert last.get_attribute("src").startswith("gallery%20%231_files/clip-")
    played = last.evaluate(PLAY)
    assert played["time"] >= 0.2 and played["width"] == 64 and played["sound"] > 0


LOAD = "all => Promise.all(all.map(picture => { picture.loading = 'eager'; return picture.decode(); }))"
SIZES = "all => all.map(picture => [picture.clientWidth, picture.clientHeight])"
NATURAL = "all => all.map(picture => picture.naturalWidth / picture.naturalHeight)"


def test_nothing_moves_when_the_key_frames_come_in(page):
    frames = visible(page, ".frames")
    frames.evaluate_all(LOAD)
    loaded = frames.evaluate_all(SIZES)
    assert [w / h for w, h in loaded] == pytest.approx(frames.evaluate_all(NATURAL), rel=0.05)
    frames.evaluate_all("all => all.forEach(picture => picture.removeAttribute('src'))")
    assert frames.evaluate_all(SIZES) == loaded


def test_it_filters(page):
    page.fill("[name=text]", "BLUE star")
    assert (count(page, "#top article"), count(page, "#bottom article")) == (1, 0)
    assert visible(page, "#top .caption").text_content() == "“a blue star”"
    assert notes(page) == [f"1 to 1 of 1 (of {EACH} without filters)", f"no clip fits (of {EACH} without filters)"]
    page.fill("[name=text]", "onerror")
    assert visible(page, "#top .caption").text_content() == f"“{NASTY}”" and count(page, ".caption img") == 0
    page.fill("[name=text]", "video3")  # an id
    assert notes(page) == [f"1 to 7 of 7 (of {EACH} without filters)"] * 2
    page.click("[type=reset]")
    page.wait_for_function(f"document.querySelectorAll('article:not([hidden])').length === {2 * PER_PAGE}")
    page.fill("[name=low]", str(LOW - 0.0035))
    page.fill("[name=high]", str(HIGH + 0.0025))
    assert (count(page, "#top article"), count(page, "#bottom article")) == (3, 4)
    page.click("[type=reset]")
    page.select_option("[name=group]", "bottom")
    assert (count(page, "#top"), count(page, "#bottom article")) == (0, PER_PAGE)


def test_only_clips_with_aligned_words(page):
    with_words = page.locator("article:has(.caption b)").count()
    assert 0 < with_words < 2 * EACH
    page.check("[name=aligned]")
    shown = 0
    while True:
        assert visible(page, "article").evaluate_all("all => all.every(article => article.querySelector('.caption b'))")
        shown += count(page, "article")
        if page.locator("footer [data-turn='1']").is_disabled():
            break
        page.locator("footer [data-turn='1']").click()
    assert shown == with_words
    style = "word => [getComputedStyle(word).fontWeight, getComputedStyle(word).color]"
    weight, colour = visible(page, ".caption b").first.evaluate(style)
    assert int(weight) >= 700 and colour == "rgb(21, 128, 61)"
    assert visible(page, ".caption b").first.get_attribute("title").startswith("p = 0.0")


def test_it_pages_through_every_clip_once(page):
    assert page.locator("form [data-turn='-1']").is_disabled()
    seen = []
    while True:
        seen += visible(page, "#top .cosine").all_text_contents()
        if page.locator("form [data-turn='1']").is_disabled():
            break
        page.locator("form [data-turn='1']").click()
    assert page.locator("form .place").text_content() == "page 6 of 6"
    assert sorted(seen) == [f"{HIGH + 0.001 * i:.3f}" for i in range(EACH)]
    page.evaluate("for (page = 0; page < 5; page++) show()")  # in a hurry: what was on its way is dropped
    page.fill("[name=text]", "dot")  # a filter begins at the first page
    assert page.locator("form .place").text_content() == "page 1 of 6"


def test_it_orders(page):
    page.select_option("[name=order]", "extreme")
    top, bottom = (visible(page, f"#{g} .cosine").all_text_contents() for g in ("top", "bottom"))
    assert top == [f"{HIGH + 0.001 * (EACH - 1 - i):.3f}" for i in range(PER_PAGE)]
    assert bottom == [f"−{-LOW + 0.001 * (EACH - 1 - i):.3f}" for i in range(PER_PAGE)]
