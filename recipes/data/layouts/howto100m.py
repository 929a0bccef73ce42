"""HowTo100M's layout: a table of videos, their timed captions, in one JSON file or a CSV file each, and the videos."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from recipes.data.encoding import clean, read_blocks
from recipes.data.layouts.layout import Layout, Row, read_table, warn_of_missing
from recipes.data.videos import VIDEOS, videos_by_name

TABLE = "HowTo100M_v1.csv"
CAPTIONS = ("raw_caption.json", "caption.json")  # whole sentences first; in the second, stop words are removed
KEYS = ("start", "end", "text")  # of the captions of a video
CAPTION_TABLES = "captions"  # or a folder of <video_id>.csv: start,end,text
BLOCK = 1 << 24  # bytes of JSON read at once: the real file is one line of gigabytes
MOST = 1 << 27  # characters that no single entry exceeds; past them the file is malformed, not unfinished
BLANK = re.compile(r"\s*")
DECODER = json.JSONDecoder()


def read_howto100m(root: Path) -> Iterator[Row]:
    """Reads the table, the captions, and the videos, in the order of the captions; those without any come last.

    Captions are the first of `raw_caption.json`, `caption.json`, and the form that MIL-NCE's code reads, a folder
    `captions` of tables. A column `split` of the table, which the original has not, is honoured.
    """
    captions = next((root / name for name in (*CAPTIONS, CAPTION_TABLES) if (root / name).exists()), None)
    if captions is None:
        raise FileNotFoundError(
            f"{root}: has {TABLE} but neither {' nor '.join(CAPTIONS)}, nor a folder {CAPTION_TABLES} of <video_id>.csv"
        )
    splits = _table(root / TABLE)
    files = videos_by_name(root)
    present = [name for name in splits if name in files]
    if not present:
        wanted = f"{next(iter(splits), 'VIDEO_ID')}{VIDEOS[0]}"
        raise FileNotFoundError(
            f"{root}: not one of the {len(splits)} videos in {TABLE} is here; looked for files like {wanted} "
            f"(or {', '.join(VIDEOS[1:])}) in {root / 'videos'} and {root}"
        )
    warn_of_missing(root, len(splits) - len(present), len(splits), "videos")
    waiting = dict.fromkeys(present)
    for name, caption in _tables(captions, present) if captions.is_dir() else _entries(captions):
        if name in waiting:
            del waiting[name]
            yield _row(name, files, splits, _narrations(captions, name, caption))
    for name in waiting:
        yield _row(name, files, splits, [])


def _row(name: str, files: dict[str, str], splits: dict[str, str], narrations: list[Row]) -> Row:
    return {"id": name, "video": files[name], "split": splits[name], "narrations": narrations}


def _table(path: Path) -> dict[str, str]:
    """Split by video id; a video that several tasks list is one video."""
    rows = (fields for _, fields in read_table(path, ("video_id",)))
    return {row["video_id"]: row.get("split") or "" for row in rows if row["video_id"]}


def _narrations(path: Path, name: str, caption: Any) -> list[Row]:
    try:
        columns = [caption[key] for key in KEYS]
        if len({len(column) for column in columns}) > 1:
            raise ValueError(f"{[len(column) for column in columns]} entries")
        return [
            {"start": float(start), "end": float(end), "text": clean(text)}
            for start, end, text in zip(*columns, strict=True)
            if text and clean(text)
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}, video {name!r}: expected three lists of one length, start, end, text; "
            f"{type(error).__name__}: {error}"
        ) from error


def _tables(folder: Path, names: list[str]) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """The (video id, columns) of those videos that have a table."""
    for name in names:
        path = folder / f"{name}.csv"
        if path.is_file():
            rows = [fields for _, fields in read_table(path, KEYS)]
            yield name, {key: [row[key] for row in rows] for key in KEYS}


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    """The (key, value) pairs of the one object in a JSON file, one at a time: memory holds a block, not the file."""
    blocks = read_blocks(path, BLOCK)
    text, at, line = "", 0, 1

    def take(parse: Callable[[str, int], tuple[Any, int]]) -> Any:
        """Takes what `parse` finds at the cursor, and reads on while it needs more text."""
        nonlocal text, at, line
        while True:
            at = BLANK.match(text, at).end()
            try:
                value, at = parse(text, at)
                return value
            except json.JSONDecodeError as error:
                line, block = next(blocks, (line, "")) if len(text) - at < MOST else (line, "")
                if not block:
                    raise ValueError(
                        f"{path}, line {line} or after: expected one whole object {{video_id: {{start, end, text}}}}; "
                        f"{error.msg} at {text[at : at + 40]!r}"
                    ) from error
                text, at = text[at:] + block, 0

    take(lambda text, at: (None, _after(text, at, "{")))
    while (entry := take(_entry)) is not None:
        yield entry
    rest = text[at:] + "".join(block for _, block in blocks)
    if rest.strip():
        raise ValueError(f"{path}: expected one object and nothing after it; found {rest.strip()[:40]!r}")


def _entry(text: str, at: int) -> tuple[tuple[str, Any] | None, int]:
    """One key and value of an object, and the position after them; None at its end."""
    if text.startswith("}", at):
        return None, at + 1
    if not text.startswith('"', at):
        raise json.JSONDecodeError("expected a video id in quotes", text, at)
    key, at = DECODER.raw_decode(text, at)
    value, at = DECODER.raw_decode(text, BLANK.match(text, _after(text, at, ":")).end())
    end = _after(text, at, ",}")
    return (key, value), end if text[end - 1] == "," else end - 1


def _after(text: str, at: int, marks: str) -> int:
    at = BLANK.match(text, at).end()
    if not text[at : at + 1] or text[at] not in marks:
        raise json.JSONDecodeError(f"expected one of {marks}", text, at)
    return at + 1


LAYOUT = Layout("HowTo100M", (TABLE,), read_howto100m)
