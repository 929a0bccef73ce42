"""Files of JSON lines that are appended to while a run may die."""

import json
from pathlib import Path
from typing import Any

from recipes.data import storage


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, none if it is not there; what follows a line that a crash cut off is left out."""
    rows = []
    text = storage.regular(path).read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a row."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def dump(rows: list[dict[str, Any]]) -> str:
    """The text of a file of rows."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
