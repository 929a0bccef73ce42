"""Refuses a split of a labelled data set whose two parts share a video: its figures would mean nothing."""

import hashlib
from collections.abc import Callable
from typing import Any

from recipes.data import storage
from recipes.data.identity import content_of, digest_of
from recipes.data.labels import Labelled, Split
from recipes.errors import DataError

EMPTY = hashlib.sha256().digest()  # of files without a byte, which the reader will skip


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
    contents = {row: content_of(videos[row]) for row in (*split.train, *split.test)}
    alike = {contents[row] for row in split.train} & {contents[row] for row in split.test} - {None}
    digests = {row: digest_of(videos[row]) for row, content in contents.items() if content in alike}
    _refuse(data, split, "are the same bytes", lambda row: digests.get(row) if digests.get(row) != EMPTY else None)


def _refuse(data: Labelled, split: Split, what: str, name: Callable[[int], Any]) -> None:
    """Refuse a name that rows of both parts have; "" and None are none."""
    trained = {name(row): row for row in reversed(split.train)}
    shared = [(row, trained[own]) for row in split.test if (own := name(row)) and own in trained]
    if shared:
        tested, other = (data.index[row]["id"] for row in shared[0])
        raise DataError(
            f"split {split.name}: {len(shared)} clip(s) to test on {what} as clips to train on, for example "
            f"{tested} and {other}; correct the lists of the data set"
        )
