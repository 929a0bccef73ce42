"""Refuses a split of a labelled data set whose two parts share a video: its figures would mean nothing."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable

from recipes.data import storage
from recipes.data.labels import Labelled, Split
from recipes.errors import DataError


def check_disjoint(data: Labelled, split: Split) -> None:
    """Compare what is trained on with what is tested on.

    A video is shared where both parts have the same file, files of the same bytes, or clips that, as the data set says,
    were cut from the same video (the groups of UCF101, `src_file` of ESC-50). The bytes of what is behind a URL are not
    compared.

    Raises:
        DataError: A video is shared; the message names a clip of each part.
    """
    videos = data.index["video"][:]
    for what, key in (
        ("are of the same file", lambda row: storage.same(videos[row])),
        ("were cut from the same video", lambda row: data.sources[row]),
    ):
        _refuse(data, split, what, key)
    sizes = {row: _size(videos[row]) for row in (*split.train, *split.test)}
    trained = {sizes[row] for row in split.train}
    tested = {sizes[row] for row in split.test}
    alike = trained & tested - {0}
    digests = {row: _digest(videos[row]) for row, size in sizes.items() if size in alike}
    _refuse(data, split, "are the same bytes", lambda row: digests.get(row, ""))


def _refuse(data: Labelled, split: Split, what: str, key: Callable[[int], str]) -> None:
    trained = defaultdict(list)
    for row in split.train:
        trained[key(row)].append(row)
    shared = [row for row in split.test if key(row) and key(row) in trained]
    if shared:
        names = data.index["id"]
        raise DataError(
            f"split {split.name}: {len(shared)} clip(s) to test on {what} as clips to train on, for example "
            f"{names[shared[0]]} and {names[trained[key(shared[0])][0]]}; correct the lists of the data set"
        )


def _size(video: str) -> int:
    """Bytes of a video; 0 where they are not to be compared."""
    if storage.is_url(video):
        return 0
    try:
        with storage.open_bytes(video) as file:
            return file.seek(0, os.SEEK_END)
    except OSError:  # it will be skipped when it is read
        return 0


def _digest(video: str) -> str:
    with storage.open_bytes(video) as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
