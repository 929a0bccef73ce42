"""WebDataset's layout: tar shards with the files of one clip after another. A clip is a range of bytes."""

import warnings
from collections.abc import Iterator
from contextlib import closing
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

from recipes.data import manifest, storage
from recipes.data.encoding import ODD, clean
from recipes.data.tar import Tar
from recipes.data.videos import VIDEOS
from recipes.progress import progress_bar

ENDING = ".tar"
INDEX = "index.parquet"  # of a folder of shards: a manifest, so that they need not be looked through
SPLITS = {"train": "train", "val": "validate", "test": "test"}  # by what the name of a shard or a folder begins with
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # what gzip, bzip2, xz, zstd begin with
TEXTS = (".json", ".txt")
DESCRIPTION = 1 << 24  # bytes of a clip's texts at most


def read_shards(root: str | Path) -> Iterator[dict[str, Any]]:
    """Reads the index of a shard, or of all in a folder, from header to header.

    The files of a clip lie next to each other and have one name, up to the first dot: the video (.mp4, .webm, .mkv),
    and a `.json` with fields of a manifest, or `caption` in place of `text`; or a `.txt`. A clip without an `id` is
    called SHARD/KEY. What follows a damage in a shard is left out, with a warning.

    Raises:
        ValueError: a compressed shard, or a description that is not as above.
        OSError: a storage behind a URL does not answer.
    """
    shards, damaged = shards_of(root), 0
    with closing(progress_bar(total=len(shards), desc="shards", unit="shard", leave=False)) as bar:
        for shard in shards:
            damage, clips = "", 0
            try:
                with storage.open_bytes(shard) as file:
                    tar = Tar(file)
                    for row in _rows(shard, tar):
                        clips += 1
                        yield row
                damage = tar.damage and f"truncated or not a tar file ({tar.damage})"
            except OSError as error:
                if storage.is_url(shard):  # it may answer another time
                    raise
                damage = f"it cannot be read ({error.strerror or error})"
            if damage:
                warnings.warn(f"{shard}: {damage}, after {clips} clip(s); the rest of it is left out", stacklevel=2)
                damaged += 1
            bar.update()
    if damaged:
        warnings.warn(f"{root}: {damaged} of {len(shards)} shards are damaged; clips may be missing", stacklevel=2)


def _rows(shard: str, tar: Tar) -> Iterator[dict[str, Any]]:
    name = PurePosixPath(shard).stem
    files = _files(shard, tar)
    for key, clip in groupby(files, lambda file: parts(file[0])[0]):
        row = row_of(shard, f"{name}/{key}", {parts(file)[1]: content for file, content in clip})
        if row is not None:
            yield row | {"split": row["split"] or split_of(name)}


def split_of(name: str) -> str:
    """The split that the name of a shard or a folder begins with; "": none."""
    return next((split for begin, split in SPLITS.items() if name.startswith(begin)), "")


def shards_of(root: str | Path) -> list[str]:
    """The shards of a folder, sorted, or the one that is named."""
    if str(root).endswith(ENDING):
        return [str(root)]
    if not storage.is_url(root):
        return [str(path) for path in sorted(Path(root).absolute().glob(f"*{ENDING}"))]
    return storage.listing(str(root), f"*{ENDING}")


def _files(shard: str, tar: Tar) -> Iterator[tuple[str, tuple[str, bytes]]]:
    """The files of a shard in order: (name, (locator, content of a text))."""
    first = True
    for member in tar:
        first = False
        text = PurePosixPath(member.name).suffix.lower() in TEXTS and member.size <= DESCRIPTION
        locator = f"{shard}#{member.offset}:{member.size}"
        yield member.name, (locator, tar.read(member.offset, member.size) if text else b"")
    if tar.damage and first and tar.read(0, 6).startswith(COMPRESSED):
        raise ValueError(f"{shard}: compressed; a clip cannot be read from the middle of it: gunzip it")


def parts(name: str) -> tuple[str, str]:
    """Key and ending of a file, which the first dot after the folders separates."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, dot, ending = file.partition(".")
    return folder + slash + stem, dot + ending.lower()


def row_of(where: str, name: str, files: dict[str, tuple[str, bytes]]) -> dict[str, Any] | None:
    """The row of a clip from (locator, content of a text) by ending; None without a video.

    `where` begins the ValueError about its description; `name` is its id, if its description has none.
    """
    video = next((files[ending][0] for ending in VIDEOS if ending in files), None)
    if video is None:
        return None
    where = f"{where}, {name}.json"
    fields = manifest.json_object(where, files[".json"][1]) if ".json" in files else {}
    text = clean(files[".txt"][1].decode("utf-8", ODD)) if ".txt" in files else None
    return manifest.row(where, {"text": fields.get("caption", text), **fields}, video, name)
