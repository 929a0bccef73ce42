"""WebDataset's layout: tar shards with the files of one clip after another, `KEY.mp4` and what is known of it.

Nothing is unpacked: a clip is a range of bytes in its shard, read where it is, also behind a URL.
"""

import json
import os
import tarfile
import warnings
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from recipes.data import manifest, storage
from recipes.data.encoding import clean
from recipes.data.videos import VIDEOS

ENDING = ".tar"
INDEX = "index.parquet"  # of a folder of shards: a manifest, so that they need not be looked through
SPLITS = {"train": "train", "val": "validate", "test": "test"}  # by what a shard's name begins with
DESCRIPTION = 1 << 24  # bytes of a clip's texts at most


def read(root: str | Path) -> Iterator[dict[str, Any]]:
    """Reads the index of a shard, or of all in a folder, going from header to header.

    The files of a clip lie next to each other and have one name, up to the first dot: the video (.mp4, .webm, .mkv),
    and a `.json` with any of the fields of a manifest, or `caption` in place of `text`; or a `.txt`. What follows a
    truncated or corrupt header is left out, with a warning, and so are other files.

    Args:
        root: a folder or shard, on this machine or behind a URL.
    Returns:
        Rows as of a manifest, by shard; a clip without an `id` is called SHARD/KEY.
    Raises:
        ValueError: a compressed shard, or a description that is not as above.
    """
    for shard in shards_of(root):
        name = PurePosixPath(shard).stem
        split = next((split for begin, split in SPLITS.items() if name.startswith(begin)), "")
        for key, files in groupby(_members(shard), lambda member: _parts(member[0])[0]):
            row = _row(shard, f"{name}/{key}", {_parts(file)[1]: found for file, found in files})
            if row is not None:
                yield row | {"split": row["split"] or split}


def shards_of(root: str | Path) -> list[str]:
    """The shards of a folder, sorted, or the one that is named."""
    if str(root).endswith(ENDING):
        return [str(root)]
    if not storage.is_url(root):
        return [str(path) for path in sorted(Path(root).absolute().glob(f"*{ENDING}"))]
    files, folder = fsspec.core.url_to_fs(str(root))
    return sorted(files.unstrip_protocol(path) for path in files.glob(f"{folder}/*{ENDING}"))


def _members(shard: str) -> Iterator[tuple[str, tuple[int, int, bytes]]]:
    """The (name, (offset, size, content of a text)) of the files in a shard, in order."""
    try:
        with storage.open_bytes(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            end = file.seek(0, os.SEEK_END)
            for member in tar:
                tar.members = []  # it would remember all
                if member.offset_data + member.size > end:
                    raise tarfile.ReadError(f"{member.name} ends at byte {member.offset_data + member.size} of {end}")
                if member.isfile():
                    text = PurePosixPath(member.name).suffix in (".json", ".txt") and member.size <= DESCRIPTION
                    content = tar.extractfile(member).read() if text else b""  # type: ignore[union-attr]
                    yield member.name, (member.offset_data, member.size, content)
    except tarfile.ReadError as error:
        if _is_compressed(shard):
            raise ValueError(f"{shard}: compressed; a clip cannot be read from the middle of it: gunzip it") from error
        warnings.warn(f"{shard}: truncated or not a tar file ({error}); the rest of it is left out", stacklevel=2)


def _is_compressed(shard: str) -> bool:
    with storage.open_bytes(shard) as file:
        return file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))


def _parts(name: str) -> tuple[str, str]:
    """Key and ending of a file: the first dot after the folders parts them."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, dot, ending = file.partition(".")
    return folder + slash + stem, dot + ending.lower()


def _row(shard: str, name: str, files: dict[str, tuple[int, int, bytes]]) -> dict[str, Any] | None:
    """The row of a clip; None where these files have no video."""
    video = next((files[ending] for ending in VIDEOS if ending in files), None)
    if video is None:
        return None
    where = f"{shard}, {name}.json"
    try:
        fields = json.loads(files[".json"][2]) if ".json" in files else {}
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{where}: expected one JSON object; {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{where}: expected one JSON object; found {fields!r:.80}")
    text = clean(files[".txt"][2].decode("utf-8", "as-cp1252")) if ".txt" in files else None
    fields = {"text": fields.get("caption", text), **fields}
    offset, size, _ = video
    return manifest.row(where, fields, f"{shard}#{offset}:{size}", name)
