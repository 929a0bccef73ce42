"""The index of a dataset, whatever its layout: one row per video, a memory-mapped Hugging Face dataset."""

import atexit
import fcntl
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset

from recipes.data import manifest, shards, storage
from recipes.data.layouts.folder import has_texts_beside_videos, read_folder
from recipes.data.layouts.table import LAYOUTS
from recipes.files import digest

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "video": pa.string(),
        "split": pa.string(),
        "group": pa.string(),
        "start": pa.float64(),
        "end": pa.float64(),
        "sound_weight": pa.float64(),
        "narrations": pa.list_(
            pa.struct({"start": pa.float64(), "end": pa.float64(), "text": pa.string(), "weight": pa.float64()})
        ),
    }
)
PLACES = pa.schema({"row": pa.int64(), "narration": pa.int32()})
ROWS_AT_ONCE = 4096
TEMPORARY = "harmony-index-"  # what the names of temporary folders begin with
UNLOCKED = 60  # seconds until a process has surely locked the folder that it made
ROWS_TO_WRITE = 256  # at once: their narrations, a hundred or more in each, are Python objects until then


def load_index(path: str | Path, split: str | None = None, prefix: str = "") -> Dataset:
    """Reads the index of a data set into a temporary file that is mapped into memory and shared by worker processes.

    Args:
        path: a folder in one of the layouts of `recipes.data.layouts`, of tar shards, or of videos and their texts, or
            a manifest (.jsonl, .csv, .parquet); shards and manifests may be behind a URL.
        split: keep the rows of this split; None keeps all.
        prefix: put before every id, to tell those of several data sets apart.
    Returns:
        One row per video: `id`, `video` (locator, see `storage`), `split` ("": none), `group` (None: none), `start` and
        `end` (seconds of the file that are the clip; None: from its beginning, to its end), `narrations` (list of
        {start, end, text, weight}; no text is empty), `sound_weight`. A weight says how far the text or the sound is to
        be trusted; None counts as 1.
    Raises:
        FileNotFoundError: nothing at `path`, or none of the videos it names.
        ValueError: no layout that is known, an unreadable row, no row (for this split), an id that occurs twice.
    """
    return index_of(path, _read_rows(path), split, prefix)


def index_of(path: str | Path, rows: Iterable[dict[str, Any]], split: str | None = None, prefix: str = "") -> Dataset:
    """The index of rows: see `load_index`. Other fields of a row are left out."""
    seen: Counter[str] = Counter()
    splits: Counter[str] = Counter()

    def chosen() -> Iterator[dict[str, Any]]:
        for row in rows:
            seen[row["id"]] += 1
            splits[row["split"]] += 1
            if split is None or row["split"] == split:
                group = row.get("group")
                yield row | {"id": prefix + row["id"], "group": prefix + group if group else None}

    index = mapped(chosen(), SCHEMA)
    twice = [name for name, count in seen.items() if count > 1]
    if twice:
        raise ValueError(f"{path}: {len(twice)} id(s) occur more than once, for example {', '.join(twice[:5])}")
    if not splits:
        raise ValueError(f"{path}: has no row")
    if not len(index):
        counts = ", ".join(f"{name or '(none)'}: {count}" for name, count in sorted(splits.items()))
        raise ValueError(f"{path}: no row has split {split!r}; rows by split: {counts}")
    return index


def _read_rows(path: str | Path) -> Iterable[dict[str, Any]]:
    is_manifest = manifest.ending(path) in manifest.SUFFIXES
    if storage.is_url(path):
        return manifest.read_manifest(path) if is_manifest else shards.read_shards(path)
    path = Path(path).expanduser()
    for layout in LAYOUTS:
        if layout.read and layout.recognises(path):
            return layout.read(path)
    if (path / shards.INDEX).is_file():
        return manifest.read_manifest(path / shards.INDEX)
    if shards.shards_of(path):
        return shards.read_shards(path)
    if path.is_file() and is_manifest:
        return manifest.read_manifest(path)
    if path.is_dir() and has_texts_beside_videos(path):
        return read_folder(path)
    marks = ", ".join(mark for layout in LAYOUTS if layout.read for mark in layout.marks)
    expected = (
        f"expected a folder with one of {marks}, *{shards.ENDING} in it, or with videos and KEY.txt or KEY.json "
        f"beside them, or a file ending in {', '.join(manifest.SUFFIXES)}"
    )
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is nothing here; {expected}")
    raise ValueError(f"{path}: not a layout that is known; {expected}")


def captions(index: Dataset) -> Iterator[str]:
    """The texts of an index; memory holds some rows at a time."""
    for rows in index.select_columns("narrations").with_format("arrow").iter(ROWS_AT_ONCE // 16):
        yield from rows["narrations"].combine_chunks().flatten().field("text").to_pylist()


def ids_digest(index: Dataset) -> str:
    """Hash of the ids of an index in their order."""
    blocks = ("\n".join(rows["id"]) for rows in index.select_columns("id").iter(ROWS_AT_ONCE))
    return digest(("\n" * (number > 0) + block).encode() for number, block in enumerate(blocks))


def narration_places(index: Dataset) -> Dataset:
    """The `row` of every narration of an index, and its position `narration` there; -1 for a video without any."""
    rows = index.select_columns("narrations").iter(64)
    counts = (len(narrations) for batch in rows for narrations in batch["narrations"])
    places = (
        {"row": row, "narration": narration}
        for row, count in enumerate(counts)
        for narration in (range(count) if count else (-1,))
    )
    return mapped(places, PLACES)


def mapped(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> Dataset:
    """Rows in a temporary file that is mapped into memory, with the fields of the schema."""
    rows, file = iter(rows), _temporary_folder() / "index.arrow"
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        while block := list(islice(rows, ROWS_TO_WRITE)):
            try:
                writer.write_batch(pa.RecordBatch.from_pylist(block, schema=schema))
            except UnicodeEncodeError as error:
                raise ValueError(f"expected names in UTF-8; found {error.object!r}: rename it") from error
    return Dataset.from_file(str(file))


def _temporary_folder() -> Path:
    """A locked folder, removed when the process ends; those of killed processes, no longer locked, are removed now."""
    for old in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*"):
        with suppress(OSError):
            if time.time() - old.stat().st_mtime > UNLOCKED and (lock := _lock(old)) is not None:
                shutil.rmtree(old, ignore_errors=True)
                os.close(lock)
    folder = Path(tempfile.mkdtemp(prefix=TEMPORARY))
    _lock(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _lock(folder: Path) -> int | None:
    """A lock on a folder, which the process keeps; None: another process has it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
