"""Opens pages in the chromium that is installed, for tests of what they do there."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH")


@contextmanager
def launched(*arguments: str) -> Iterator[Any]:
    """The installed chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *arguments])
        yield browser
        browser.close()


@contextmanager
def watched(page: Any, file: Path) -> Iterator[Any]:
    """A file opened in a page; at the end nothing must have gone wrong, and nothing have been asked of a network."""
    wrong, asked = [], []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda r: wrong.append(f"{r.url} {r.failure}") if "ABORTED" not in r.failure else None)
    page.on("request", lambda r: asked.append(r.url))
    page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    page.goto(file.as_uri())
    yield page
    assert wrong == []
    assert {url.split(":")[0] for url in asked} <= {"file", "blob", "data"}
