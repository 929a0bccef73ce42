"""Files of JSON lines that are appended to while a run may die."""

import json
from pathlib import Path
from typing import Any

from recipes.config import ConfigError


def read(path: Path, **types: type) -> list[dict[str, Any]]:
    """The rows of a file, none if it is not there; what follows a line that a crash cut off is left out.

    Args:
        path: The file.
        **types: Keys that every row has, and the type of each.

    Raises:
        ConfigError: The file cannot be read, or a row is not such an object.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
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


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a row."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def dump(rows: list[dict[str, Any]]) -> str:
    """The text of a file of rows."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
