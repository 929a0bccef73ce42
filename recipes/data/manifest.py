"""A manifest: a JSONL, CSV or Parquet file with one row per video, the simplest way to bring one's own data."""

import csv
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recipes.data import storage
from recipes.data.encoding import clean, read_lines, storable

FIELDS = (
    *("id", "video", "split", "group", "start", "end", "text", "narrations", "label", "fold"),
    *("text_weight", "sound_weight"),
)
Located = Iterator[tuple[str, dict[str, Any]]]  # (where the row is, for people; its fields)


def read_manifest(path: str | Path) -> Iterator[dict[str, Any]]:
    """Reads a .jsonl, .csv or .parquet file, or a URL of one, into rows of an index, in the file's order.

    Fields of a row: `video` (a path relative to the manifest, or a URL; see `storage`), and `text` (of the whole clip)
    or `narrations` (a list of {start, end, text}; in CSV a JSON string); optionally `id` (default: the video's path),
    `split`, `group` (what it is cut from: all clips of one are in one split), `start` and `end`, the part of the file
    that is the clip. A row with a `label` (see `labelled_manifest`) needs no text. Times are seconds of the file.
    `sound_weight`, and the `text_weight` of a `text` or the `weight` of a narration, say how far the sound and the text
    are to be trusted: numbers >= 0, 1 where they are left out.

    Raises:
        FileNotFoundError: not one of the videos exists.
        ValueError: a row that is not as above; says file and line.
    """
    return (row for _, _, row in located(path))


def located(path: str | Path) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """As `read_manifest`: (where the row is, for people; its fields in the file; the row)."""
    root = storage.parent(path)
    unnamed: dict[str, int] = {}
    count, any_file, first = 0, False, ""
    for where, fields in SUFFIXES[ending(path)](path):
        video = storage.join(root, _string(where, fields, "video", required=True))
        any_file = any_file or storage.exists(video)  # one is enough: whether each is whole is seen when it is read
        first, count = first or video, count + 1
        name = _string(where, fields, "id") or clean(_name(video, root, unnamed))
        yield where, fields, row(where, fields, video, name)
    if count and not any_file:
        raise FileNotFoundError(f"{path}: not one of its {count} videos exists; the first would be {first}")


def row(where: str, fields: dict[str, Any], video: str, name: str) -> dict[str, Any]:
    """Makes a row of an index; `where` begins a ValueError about a field, and `name` is the id if there is none."""
    return {
        "id": _string(where, fields, "id") or name,
        "video": video,
        "split": _string(where, fields, "split"),
        "group": _string(where, fields, "group") or None,
        **_part(where, fields),
        "sound_weight": weight(where, fields, "sound_weight"),
        "narrations": _narrations(where, fields),
    }


def fields_of(row: dict[str, Any], video: str) -> dict[str, Any]:
    """The fields from which `row` makes a row again, with another `video`; text of the whole clip is a `text`."""
    part = {key: row[key] for key in ("start", "end") if row[key] is not None}
    group = {"group": row["group"]} if row.get("group") else {}
    sound = {"sound_weight": row["sound_weight"]} if row.get("sound_weight") is not None else {}
    fields = {"id": row["id"], "video": video, "split": row["split"], **group, **part, **sound}
    narrations = [{key: value for key, value in n.items() if value is not None} for n in row["narrations"]]
    if len(narrations) == 1 and math.isinf(narrations[0]["end"]):
        weighed = {"text_weight": narrations[0]["weight"]} if "weight" in narrations[0] else {}
        return fields | {"text": narrations[0]["text"]} | weighed
    return fields | {"narrations": narrations}


def ending(path: str | Path) -> str:
    """The ending of a path or URL, in small letters."""
    return PurePosixPath(str(path)).suffix.lower()


def _name(video: str, root: str, unnamed: dict[str, int]) -> str:
    stem = PurePosixPath(storage.PART.sub("", video)).with_suffix("").as_posix().removeprefix(f"{root}/")
    unnamed[stem] = unnamed.get(stem, 0) + 1
    return stem if unnamed[stem] == 1 else f"{stem}#{unnamed[stem]}"


def _string(where: str, fields: dict[str, Any], key: str, required: bool = False) -> str:
    value = fields.get(key)
    if value is None and not required:
        return ""
    if key in ("id", "split", "group") and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or (required and not value.strip()):
        shown = f"{value!r:.80}" if key in fields else f"only the fields {', '.join(map(str, fields)) or '(none)'}"
        raise ValueError(f"{where}: expected {key!r} to be a string; found {shown}")
    return storable(value) if key == "video" else clean(value)  # a path stays what it is


def _part(where: str, fields: dict[str, Any]) -> dict[str, float | None]:
    """`start` and `end` of the clip in its file; an empty field of a CSV file is none."""
    given = {key: fields.get(key) for key in ("start", "end")}
    try:
        part = {key: None if value in (None, "") else float(value) for key, value in given.items()}
        start = part["start"] or 0.0
        if not (0 <= start < math.inf and (part["end"] is None or part["end"] > start)):
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        shown = {key: f"{value!r:.40}" for key, value in given.items()}
        raise ValueError(f"{where}: expected 'start' and 'end' in seconds, start before end; found {shown}") from error
    return part


def _narrations(where: str, fields: dict[str, Any]) -> list[dict[str, Any]]:
    narrations = fields.get("narrations")
    if narrations is None or narrations == "":
        if not {"text", "narrations", "label"} & fields.keys():
            raise ValueError(
                f"{where}: expected a field 'text', 'narrations' or 'label'; found {', '.join(map(str, fields))}"
            )
        text, trust = _string(where, fields, "text"), weight(where, fields, "text_weight")
        return [{"start": 0.0, "end": math.inf, "text": text, "weight": trust}] if text else []
    if isinstance(narrations, str):
        try:
            narrations = json.loads(narrations)
        except (ValueError, RecursionError) as error:
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
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{where}: expected narration {number} to be {{start: seconds, end: seconds, not before start, "
            f"text: string}}; found {narration!r:.80}"
        ) from error
    trust = weight(f"{where}, narration {number}", narration, "weight")
    return {"start": start, "end": end, "text": clean(text or ""), "weight": trust}


def weight(where: str, fields: dict[str, Any], key: str) -> float | None:
    """How far a pair is to be trusted; None: nothing is said, which counts as 1."""
    value = fields.get(key)
    if value in (None, ""):
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError(f"{where}: expected {key!r} to be a number, 0 or more; found {value!r:.40}")
    return number


def _jsonl(path: str | Path) -> Located:
    for number, text in read_lines(path):
        where = f"{path}, line {number}"
        if not text.strip():
            continue
        yield where, json_object(where, text)


def json_object(where: str, text: str | bytes) -> dict[str, Any]:
    """Parses a JSON object; a ValueError begins with `where`."""
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: expected one JSON object; {error.msg} at character {error.pos + 1}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a list in a list in a list ...
        raise ValueError(f"{where}: expected one JSON object; {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{where}: expected one JSON object; found {fields!r:.80}")
    return fields


def _csv(path: str | Path) -> Located:
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


def _parquet(path: str | Path) -> Located:
    with storage.open_bytes(path) as file:
        try:
            table = pq.ParquetFile(file)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ValueError(f"{path}: not a Parquet file: {error}") from error
        columns = [name for name in table.schema_arrow.names if name in FIELDS]
        number = 0
        try:
            for batch in table.iter_batches(1024, columns=columns):
                for fields in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", fields
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: damaged after row {number}: {error}") from error


SUFFIXES: dict[str, Callable[[str | Path], Located]] = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
