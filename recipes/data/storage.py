"""Where the bytes of a clip are: in a file, behind a URL that fsspec knows, or in a part of either, as in a shard.

A locator is a path or URL, with `#offset:size` after it where it means a part.
"""

import io
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import fsspec

PART = re.compile(r"#(\d+):(\d+)$")
ATTEMPTS = 3  # to read from a URL, with a pause of 1, 2, ... seconds between them


def is_url(locator: str | Path) -> bool:
    """Whether a locator is a URL, which fsspec opens: https://, s3://, gs://, hf:// ..."""
    return "://" in str(locator)


def join(folder: str | Path, name: str) -> str:
    """The locator of a name that is relative to a folder, or that is a path or URL of its own."""
    if is_url(name):
        return name
    return f"{folder}/{name}" if is_url(folder) else str(Path(folder) / name)


def parent(locator: str | Path) -> str:
    """The folder that a file or URL is in; of a path, absolute."""
    return str(locator).rpartition("/")[0] if is_url(locator) else str(Path(locator).absolute().parent)


def relative(locator: str, folder: Path) -> str:
    """What `join` makes a locator of, in a folder on this machine."""
    return locator if is_url(locator) else os.path.relpath(locator, folder)


def same(locator: str) -> str:
    """One name for all that lead to the same bytes: links are followed."""
    path = _parse(locator)[0]
    return locator if is_url(path) else os.path.realpath(path) + locator[len(path) :]


def exists(locator: str) -> bool:
    """Whether there is a file; of a URL it is seen when it is read."""
    return is_url(locator) or Path(_parse(locator)[0]).is_file()


def open_bytes(locator: str | Path) -> BinaryIO:
    """Opens what a locator means, for reading at any place.

    Raises:
        FileNotFoundError: there is no such file on this machine.
        OSError: it cannot be opened, cannot be read from the middle, or ends before the part does.
    """
    path, start, size = _parse(str(locator))
    if not is_url(path):
        if start is None:
            return open(path, "rb")
        return io.BufferedReader(_Part(lambda: open(path, "rb", buffering=0), start, size, attempts=1))
    try:
        return io.BufferedReader(_Part(lambda: fsspec.open(path, "rb").open(), start or 0, size, ATTEMPTS))
    except Exception as error:  # each storage has errors of its own
        raise OSError(f"no such file, or its storage cannot be read: {type(error).__name__}: {error}") from error


def _parse(locator: str) -> tuple[str, int | None, int | None]:
    match = PART.search(locator)
    return (locator[: match.start()], int(match[1]), int(match[2])) if match else (locator, None, None)


class _Part(io.RawIOBase):
    """A part of a file as a file of its own. What fails is tried again, from a file that is opened anew."""

    def __init__(self, opener: Callable[[], BinaryIO], start: int, size: int | None, attempts: int):
        self.opener, self.start, self.attempts, self.place = opener, start, attempts, 0
        self.file = opener()
        end = self.file.seek(0, os.SEEK_END)
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
        for attempt in range(1, self.attempts + 1):
            try:
                self.file.seek(self.start + self.place)
                return self.file.read(count)
            except Exception as error:
                if attempt == self.attempts:
                    raise OSError(f"after {attempt} attempt(s): {type(error).__name__}: {error}") from error
                time.sleep(attempt)
                self.file = self.opener()
        raise AssertionError("at least one attempt")

    def close(self) -> None:
        if not self.closed:
            self.file.close()
        super().close()
