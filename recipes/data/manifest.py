"""A manifest: a JSONL, CSV or Parquet file with one row per video, the simplest way to bring one's own data."""

import csv
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from recipes.data.encoding import clean, read_lines

FIELDS = ("id", "video", "split", "start", "end", "text", "narrations")
Located = Iterator[tuple[str, dict[str, Any]]]  # (where the row is, for people; its fields)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Reads a manifest.

    Fields of a row: `video` (relative to the manifest), and `text` (spoken or true over the whole clip) or
    `narrations` (a list of {start, end, text}; in CSV a JSON string); optionally `id` (default: the video's relative
    path without its ending, numbered where it occurs again), `split`, and `start` and `end`, the part of the file that
    is the clip, in seconds. Others are ignored. A null or empty text is no narration. All times are of the file.

    Args:
        path: a .jsonl, .csv or .parquet file.
    Returns:
        Rows of `id`, `video` (absolute path), `split`, `start`, `end`, `narrations`, in the file's order.
    Raises:
        FileNotFoundError: not one of the videos exists.
        ValueError: a row that is not as above; says file and line.
    """
    root = path.absolute().parent
    unnamed: dict[str, int] = {}
    count, any_file, first = 0, False, ""
    for where, fields in SUFFIXES[path.suffix.lower()](path):
        video = root / _string(where, fields, "video", required=True)
        any_file = any_file or video.is_file()  # one is enough: whether each is whole is seen when it is read
        first, count = first or str(video), count + 1
        yield {
            "id": _string(where, fields, "id") or _name(video, root, unnamed),
            "video": str(video),
            "split": _string(where, fields, "split"),
            **_part(where, fields),
            "narrations": _narrations(where, fields),
        }
    if count and not any_file:
        raise FileNotFoundError(f"{path}: not one of its {count} videos exists; the first would be {first}")


def _name(video: Path, root: Path, unnamed: dict[str, int]) -> str:
    stem = (video.relative_to(root) if video.is_relative_to(root) else video).with_suffix("").as_posix()
    unnamed[stem] = unnamed.get(stem, 0) + 1
    return stem if unnamed[stem] == 1 else f"{stem}#{unnamed[stem]}"


def _string(where: str, fields: dict[str, Any], key: str, required: bool = False) -> str:
    value = fields.get(key)
    if value is None and not required:
        return ""
    if key in ("id", "split") and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or (required and not value.strip()):
        found = repr(value) if key in fields else f"only the fields {', '.join(map(str, fields)) or '(none)'}"
        raise ValueError(f"{where}: expected {key!r} to be a string; found {found}")
    return clean(value)


def _part(where: str, fields: dict[str, Any]) -> dict[str, float | None]:
    """`start` and `end` of the clip in its file; an empty field of a CSV file is none."""
    given = {key: fields.get(key) for key in ("start", "end")}
    try:
        part = {key: None if value in (None, "") else float(value) for key, value in given.items()}
        start = part["start"] or 0.0
        if not (0 <= start < math.inf and (part["end"] is None or part["end"] > start)):
            raise ValueError
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: expected 'start' and 'end' in seconds, start before end; found {given}") from error
    return part


def _narrations(where: str, fields: dict[str, Any]) -> list[dict[str, Any]]:
    narrations = fields.get("narrations")
    if narrations is None or narrations == "":
        if "text" not in fields and "narrations" not in fields:
            raise ValueError(f"{where}: expected a field 'text' or 'narrations'; found {', '.join(map(str, fields))}")
        text = _string(where, fields, "text")
        return [{"start": 0.0, "end": math.inf, "text": text}] if text else []
    if isinstance(narrations, str):
        try:
            narrations = json.loads(narrations)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: 'narrations' is not JSON: {error}") from error
    if not isinstance(narrations, list):
        raise ValueError(f"{where}: 'narrations' is not a list of {{start, end, text}}: {narrations!r:.80}")
    parsed = [_narration(where, number, narration) for number, narration in enumerate(narrations)]
    return [narration for narration in parsed if narration["text"]]


def _narration(where: str, number: int, narration: Any) -> dict[str, Any]:
    try:
        start, end, text = float(narration["start"]), float(narration["end"]), narration["text"]
        if not (math.isfinite(start) and end >= start and isinstance(text, str | None)):
            raise ValueError
        return {"start": start, "end": end, "text": clean(text or "")}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: expected narration {number} to be {{start: seconds, end: seconds, not before start, "
            f"text: string}}; found {narration!r:.80}"
        ) from error


def _jsonl(path: Path) -> Located:
    for number, text in read_lines(path):
        where = f"{path}, line {number}"
        if not text.strip():
            continue
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: expected one JSON object; {error.msg} at character {error.pos + 1}") from error
        if not isinstance(fields, dict):
            raise ValueError(f"{where}: expected one JSON object; found {text.strip()[:80]}")
        yield where, fields


def _csv(path: Path) -> Located:
    csv.field_size_limit(1 << 30)  # all narrations of a long video are one field
    table = csv.DictReader((text for _, text in read_lines(path)), strict=True)
    try:
        for fields in table:
            where = f"{path}, line {table.line_num}"
            if None in fields or None in fields.values():
                names = table.fieldnames or ()
                raise ValueError(f"{where}: expected {len(names)} columns: {', '.join(names)}")
            yield where, fields
    except csv.Error as error:
        raise ValueError(f"{path}, line {table.line_num}: not CSV: {error}") from error


def _parquet(path: Path) -> Located:
    try:
        table = pq.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a Parquet file: {error}") from error
    columns = [name for name in table.schema_arrow.names if name in FIELDS]
    number = 0
    with table:
        for batch in table.iter_batches(1024, columns=columns):
            for fields in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", fields


SUFFIXES: dict[str, Callable[[Path], Located]] = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
