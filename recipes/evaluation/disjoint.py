"""Refuses a split of a labelled data set whose two parts share a video: its figures would mean nothing."""

import hashlib
import os
from collections.abc import Callable

from recipes.data import storage
from recipes.data.labels import Labelled, Split
from recipes.errors import DataError


def check_disjoint(data: Labelled, split: Split) -> None:
    """Compare the clips to train on with the clips to test on.

    Both parts share a video where they have the same file, files of the same bytes, or clips that, as the data set
    says, were cut from the same video (the groups of UCF101, `src_file` of ESC-50). The bytes behind a URL are not
    compared.

    Raises:
        DataError: They share a video; the message names a clip of each part.
    """
    videos = data.index["video"][:]
    _refuse(data, split, "are of the same file", lambda row: storage.same(videos[row]))
    _refuse(data, split, "were cut from the same video", lambda row: data.sources[row])
    sizes = {row: _size(videos[row]) for row in (*split.train, *split.test)}
    alike = {sizes[row] for row in split.train} & {sizes[row] for row in split.test} - {0}
    digests = {row: _digest(videos[row]) for row, size in sizes.items() if size in alike}
    _refuse(data, split, "are the same bytes", lambda row: digests.get(row, ""))


def _refuse(data: Labelled, split: Split, what: str, name: Callable[[int], str]) -> None:
    """Refuse a name that rows of both parts have; "" is none."""
    trained = {name(row): row for row in reversed(split.train)}
    shared = [(row, trained[own]) for row in split.test if (own := name(row)) and own in trained]
    if shared:
        tested, other = (data.index[row]["id"] for row in shared[0])
        raise DataError(
            f"split {split.name}: {len(shared)} clip(s) to test on {what} as clips to train on, for example "
            f"{tested} and {other}; correct the lists of the data set"
        )


def _size(video: str) -> int:
    """Bytes of a video; 0 where they are not to be compared."""
    if storage.is_url(video):
        return 0
    try:
        with storage.open_bytes(video) as file:
            return file.seek(0, os.SEEK_END)
    except OSError:  # the reader will skip it
        return 0


def _digest(video: str) -> str:
    with storage.open_bytes(video) as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
