"""Files of JSON lines that are appended to while a run may die."""

import json
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from recipes.errors import ConfigError
from recipes.files import regular

log = logging.getLogger(__name__)


def read_rows(path: Path, **types: type) -> list[dict[str, Any]]:
    """The rows of a file; none if there is no file. A line that a crash has cut off ends them.

    Args:
        path: The file.
        **types: Keys that every row has, and the type of each.

    Raises:
        ConfigError: The file cannot be read, or a row is not such an object.
    """
    try:
        text = regular(path).read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        lines = text.splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            break
        wrong = [k for k, kind in types.items() if not isinstance(row, dict) or not isinstance(row.get(k), kind)]
        if wrong or not isinstance(row, dict):
            keys = ", ".join(f"{key} ({kind.__name__})" for key, kind in types.items())
            raise ConfigError(f"{path}, line {number}: expected an object with {keys or 'keys'}; found {line[:60]!r}")
        rows.append(row)
    return rows


def append_rows(path: Path, *rows: dict[str, Any]) -> None:
    """Add all rows or none.

    Raises:
        OSError: They cannot be written.
    """
    text = memoryview(as_text(rows).encode())
    with path.open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            while text:
                text = text[file.write(text) :]
        except OSError:
            with suppress(OSError):
                file.truncate(size)  # a torn line would hide those after it
            raise


class Rows:
    """A file to add rows to. Rows that cannot be written wait for the next time, and the work goes on.

    Attributes:
        failures: How often rows could not be written.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.failures = path, 0
        self._waiting: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """Write a row, and the rows that wait."""
        self._waiting.append(row)
        try:
            append_rows(self.path, *self._waiting)
        except OSError as error:
            self.failures += 1
            log.warning("%s cannot be written (%s): %d line(s) wait", self.path, error, len(self._waiting))
        else:
            self._waiting.clear()


def as_text(rows: Iterable[dict[str, Any]]) -> str:
    """The text of a file of rows."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
