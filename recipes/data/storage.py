"""Opens locators: a file, a URL that fsspec knows, or with `#offset:size` a part of either, as of a shard."""

import io
import logging
import operator
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, BinaryIO, TypeVar

import fsspec

from recipes.data import urls
from recipes.files import regular

PART = re.compile(r"#(\d{1,18}):(\d{1,18})$")
ATTEMPTS = 3  # to open a URL or read from it
PAUSE = 1.0  # seconds before the second attempt; twice as many before the third
PATIENCE = 30.0  # seconds for one answer of a storage behind a URL
FINAL = (FileNotFoundError, PermissionError, ImportError, ValueError, NotImplementedError)  # a second try is useless

Value = TypeVar("Value")
log = logging.getLogger(__name__)


def is_url(locator: str | Path) -> bool:
    """Whether a locator is a URL, such as https://, s3://, gs:// or hf://."""
    return "://" in str(locator)


def join(folder: str | Path, name: str) -> str:
    """The locator of a name in a folder; a URL or an absolute path stays what it is."""
    if is_url(name):
        return name
    return f"{folder}/{name}" if is_url(folder) else str(Path(folder) / name)


def parent(locator: str | Path) -> str:
    """The folder of a file, absolute, or of a URL."""
    return str(locator).rpartition("/")[0] if is_url(locator) else str(Path(locator).absolute().parent)


def relative(locator: str, folder: Path) -> str:
    """The name of which `join` makes a locator, in a folder on this machine."""
    return locator if is_url(locator) else os.path.relpath(locator, folder)


def same(locator: str) -> str:
    """One locator for all that lead to the same bytes: links are followed."""
    path = _parse(locator)[0]
    try:
        return locator if is_url(path) else os.path.realpath(path) + locator[len(path) :]
    except ValueError:  # not the name of a file, see `regular`
        return locator


def exists(locator: str) -> bool:
    """Whether there is a file; a URL is taken to exist until it is read."""
    return is_url(locator) or os.path.isfile(_parse(locator)[0])  # False for a name that no file can have


def open_bytes(locator: str | Path) -> BinaryIO:
    """Opens a locator, to read at any place.

    Raises:
        FileNotFoundError: there is no such file on this machine.
        OSError: it is no regular file, cannot be read, or ends before the part does; a URL is not allowed, or its
            storage does not answer.
    """
    path, start, size = _parse(str(locator))
    if not is_url(path):
        if start is None:
            return open(regular(path), "rb")
        return io.BufferedReader(_Part(lambda: open(regular(path), "rb", buffering=0), start, size, operator.call))
    urls.require_allowed(path)
    try:
        ask = partial(_patiently, path)
        return io.BufferedReader(_Part(lambda: fsspec.open(path, "rb").open(), start or 0, size, ask))
    except Exception as error:  # each storage has errors of its own
        raise OSError(f"no such file, or its storage cannot be read: {type(error).__name__}: {error}") from error


def listing(folder: str, pattern: str) -> list[str]:
    """The URLs of the files in a folder behind a URL whose names match a pattern, sorted; an OSError if it fails."""
    urls.require_allowed(folder)

    def matching() -> list[str]:
        files, root = fsspec.core.url_to_fs(folder)
        return sorted(files.unstrip_protocol(path) for path in files.glob(f"{root}/{pattern}"))

    return _patiently(folder, matching)


def _patiently(name: str, action: Callable[[], Value]) -> Value:
    """The answer of a storage, which is asked again if it fails or does not answer; the reason is logged."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _within(PATIENCE, action)
        except Exception as error:
            if isinstance(error, ImportError):  # fsspec says which package to install
                raise OSError(f"{name}: {error}") from error
            if isinstance(_origin(error), FINAL):
                raise
            what = f"{type(error).__name__}: {error}"
            if attempt == ATTEMPTS:
                raise OSError(f"after {attempt} attempt(s): {what}") from error
            log.warning("%s: %s; attempt %d of %d follows", name, what, attempt + 1, ATTEMPTS)
            time.sleep(PAUSE * attempt)
    raise AssertionError("at least one attempt")


def _origin(error: BaseException) -> BaseException:
    """The cause of a `FileNotFoundError`, which fsspec makes of every failure of HTTP."""
    while isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _within(seconds: float, action: Callable[[], Value]) -> Value:
    """The result of an action; if it takes too long, a TimeoutError, and the action is left to itself."""
    future: Future[Value] = Future()

    def run() -> None:
        try:
            future.set_result(action())
        except Exception as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.done():  # it is the action's own
            raise
        raise TimeoutError(f"no answer within {seconds:g} s") from None


def _parse(locator: str) -> tuple[str, int | None, int | None]:
    match = PART.search(locator)
    return (locator[: match.start()], int(match[1]), int(match[2])) if match else (locator, None, None)


class _Part(io.RawIOBase):
    """A part of a file as a file of its own. After a failure, the file is opened anew."""

    def __init__(
        self, opener: Callable[[], BinaryIO], start: int, size: int | None, ask: Callable[[Callable[[], Any]], Any]
    ):
        self.opener, self.start, self.ask, self.place = opener, start, ask, 0

        def opened() -> tuple[BinaryIO, int]:
            file = opener()
            return file, file.seek(0, os.SEEK_END)

        self.file, end = ask(opened)
        self.size = end - start if size is None else size
        if start + self.size > end:
            self.file.close()
            raise OSError(f"truncated: the file ends at byte {end}, this part of it at {start + self.size}")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.place = max(0, {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.size}[whence] + offset)
        return self.place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted = max(0, min(len(buffer), self.size - self.place))
        data = self._read(wanted) if wanted else b""
        buffer[: len(data)] = data
        self.place += len(data)
        return len(data)

    def _read(self, count: int) -> bytes:
        known = [self.file]  # for the first attempt, which may go on using it if it does not end

        def read() -> tuple[BinaryIO, bytes]:
            file = known.pop() if known else self.opener()
            file.seek(self.start + self.place)
            return file, file.read(count)

        self.file, data = self.ask(read)
        return data

    def close(self) -> None:
        if not self.closed:
            self.file.close()
        super().close()
