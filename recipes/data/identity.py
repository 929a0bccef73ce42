"""What identifies a video, whatever its name or shard: a hash of its bytes, its id on YouTube, its source."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from multiprocessing.pool import ThreadPool
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np
from datasets import Dataset
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from recipes.data import storage, tfrecord
from recipes.data.decode import BrokenClip
from recipes.data.index import ROWS_AT_ONCE
from recipes.progress import progress_bar

FILE = "trained_on.safetensors"  # in a checkpoint
BLOCK = 1 << 14  # bytes at each end of a file
THREADS = 64  # that wait for the storage
RECORD = re.compile(r"#(\d+)$")
# Ids are 64 bits in base 64: of the last of the 11 letters two bits are always zero. A name that follows, or a time in
# seconds, as in the names of segments, is not a part of it.
YOUTUBE = re.compile(r"(?:^|[/=\[-])([\w-]{10}[AEIMQUYcgkosw048])(?=$|[\].:#&]|_\d)", re.ASCII)
# What numbers the parts of a source: film_0012, film-3-4.
PARTS = re.compile(r"([\W_]*(clip|part|scene|seg|segment|shot|chunk)?[\W_]+\d+)+$", re.IGNORECASE)


class Identity(NamedTuple):
    """Hashes of a video: of its bytes (None: unreadable, or behind a URL), its names and its path."""

    content: int | None
    names: frozenset[int]
    place: int


class Seen(NamedTuple):
    """The videos of a run: sorted hashes of contents, uint64 (N,), a row of each, int64 (N,), and names, uint64 (M,).

    Runs of earlier versions have no rows.
    """

    contents: np.ndarray
    names: np.ndarray
    rows: np.ndarray = np.empty(0, np.int64)


def seen(index: Dataset) -> Seen:
    """The identities of all videos of an index."""
    files: dict[tuple[int, int], int] = {}  # row by the content and the place of a file
    names: set[int] = set()
    with progress_bar(total=len(index), desc="fingerprints", unit="clip", leave=False) as bar:
        for row, identity in enumerate(identities(index)):
            if identity.content is not None:
                files.setdefault((identity.content, identity.place), row)
            names |= identity.names
            bar.update()
    pairs = sorted((content, row) for (content, _), row in files.items())
    contents, rows = [content for content, _ in pairs], [row for _, row in pairs]
    return Seen(np.array(contents, np.uint64), np.array(sorted(names), np.uint64), np.array(rows, np.int64))


def identities(index: Dataset, origins: Mapping[str, str] | None = None) -> Iterator[Identity]:
    """The identity of the video of each row; `origins` are further names of videos, by the id of the row."""
    with ThreadPool(THREADS) as pool:
        for rows in index.select_columns(["id", "video"]).iter(ROWS_AT_ONCE):
            contents = pool.map(content_of, rows["video"])
            for name, video, content in zip(rows["id"], rows["video"], contents, strict=True):
                yield Identity(content, _names(name, video, (origins or {}).get(name, "")), _hash(video.encode()))


def content_of(locator: str) -> int | None:
    """A hash of the number of a video's bytes, the first and the last; None: they cannot be read cheaply."""
    if storage.is_url(locator):
        return None
    try:
        with _opened(locator) as file:
            size = file.seek(0, 2)
            file.seek(0)
            first = file.read(BLOCK)
            file.seek(max(len(first), size - BLOCK))
            return _hash(b"%d:" % size + first + file.read(BLOCK))
    except (BrokenClip, OSError):
        return None


def digest_of(locator: str) -> bytes | None:
    """A digest of all bytes of a video; None: they cannot be read."""
    try:
        with _opened(locator) as file:
            return hashlib.file_digest(file, hashlib.sha256).digest()  # type: ignore[arg-type]
    except (BrokenClip, OSError):
        return None


def _opened(locator: str) -> BinaryIO:
    if record := RECORD.search(locator):
        locator = tfrecord.part(Path(locator[: record.start()]), int(record[1]))
    return storage.open_bytes(locator)


def youtube_id(name: str) -> str | None:
    """The id on YouTube in the id of a row, in the name of a file without its ending, or in a URL.

    Examples:
        >>> [youtube_id(name) for name in ("howto100m/9GX8f5EwwE4", "9GX8f5EwwE4_30_40", "Dinner [9GX8f5EwwE4]")]
        ['9GX8f5EwwE4', '9GX8f5EwwE4', '9GX8f5EwwE4']
        >>> youtube_id("https://www.youtube.com/watch?v=9GX8f5EwwE4&t=3"), youtube_id("video_00004")
        ('9GX8f5EwwE4', None)
    """
    match = YOUTUBE.search(name)
    # An id has small and large letters, but for six in a thousand; names that people give seldom have both.
    return match[1] if match and match[1].lower() != match[1] != match[1].upper() else None


def source_of(video: str) -> str | None:
    """The source of which a file seems to be a numbered part: an id on YouTube, or its path without the numbers.

    >>> source_of("/clips/film_0012.mp4"), source_of("/clips/film_scene-3.mp4"), source_of("/clips/film.mp4")
    ('/clips/film', '/clips/film', None)
    """
    path = PurePosixPath(storage.PART.sub("", video)).with_suffix("").as_posix()
    if name := youtube_id(path.rpartition("/")[2]):
        return name
    stem = PARTS.sub("", path)
    return stem if stem != path and not storage.PART.search(video) else None


def divided(train: Dataset, test: Dataset) -> dict[str, tuple[str, str]]:
    """Sources that clips without a group seem to share between two indexes: the id of a clip of each, by source."""
    tested = _clip_by_source(test)
    shared = {source: (name, tested[source]) for source, name in _clip_by_source(train).items() if source in tested}
    return shared if len(tested) > 1 else {}  # one name and numbers for all files say nothing about sources


def _clip_by_source(index: Dataset) -> dict[str, str]:
    """The id of a clip of each source."""
    clips: dict[str, str] = {}
    for rows in index.select_columns(["id", "video", "group"]).iter(ROWS_AT_ONCE):
        for name, video, group in zip(rows["id"], rows["video"], rows["group"], strict=True):
            if not group and (source := source_of(video)):
                clips.setdefault(source, name)
    return clips


def save(videos: Seen, path: Path) -> None:
    """Writes the videos of a run."""
    save_file(videos._asdict(), path)


def load(path: Path) -> Seen:
    """Reads what `save` wrote; a ValueError if it is damaged."""
    try:
        return Seen(**load_file(path))
    except (OSError, SafetensorError, TypeError) as error:
        raise ValueError(f"{path}: damaged: {error}") from error


def _names(name: str, video: str, origin: str) -> frozenset[int]:
    stem = PurePosixPath(storage.PART.sub("", video)).stem
    names = {youtube_id(name), youtube_id(stem), youtube_id(origin), video if storage.is_url(video) else None}
    return frozenset(_hash(known.encode()) for known in names - {None})


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
