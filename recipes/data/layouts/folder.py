"""A folder of videos with their texts beside them: `KEY.mp4` with `KEY.txt` or `KEY.json`, as in a tar shard."""

import os
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from recipes.data import shards, storage
from recipes.data.layouts.layout import Row
from recipes.data.shards import DESCRIPTION, TEXTS, split_of
from recipes.data.videos import VIDEOS, walk


def has_texts_beside_videos(root: Path) -> bool:
    """Whether there is a video with a text beside it, in the folder or in one below it."""
    return any(set(VIDEOS) & endings.keys() and set(TEXTS) & endings.keys() for _, endings in _clips(root))


def read_folder(root: Path) -> Iterator[Row]:
    """Reads a folder and those below it; see `read_shards` for what a text may say.

    A clip without an `id` is called by its path without the ending; its split is that of the folder below the root.
    """
    for key, endings in _clips(root):
        if not set(VIDEOS) & endings.keys():
            continue
        files = {ending: (path, _text(path) if ending in TEXTS else b"") for ending, path in endings.items()}
        row = shards.row_of(str(root), key, files)
        if row is not None:
            yield row | {"split": row["split"] or (split_of(key) if "/" in key else "")}


def _clips(root: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Key of a clip, and path by ending of its files."""
    for folder, names in walk(root):
        for stem, files in groupby(sorted(map(os.path.splitext, names)), lambda file: file[0]):
            paths = {ending.lower(): os.path.join(folder, stem + ending) for _, ending in files}
            yield os.path.relpath(os.path.join(folder, stem), root.absolute()), paths


def _text(path: str) -> bytes:
    with storage.open_bytes(path) as file:
        return file.read(DESCRIPTION)
