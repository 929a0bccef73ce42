"""Clips that seem to be cut from one source (film, recording, channel), by their names."""

import re
from pathlib import PurePosixPath

from datasets import Dataset

from recipes.data import storage
from recipes.data.identity import youtube_id
from recipes.data.index import ROWS_AT_ONCE

# film_0012, film-3-4
PARTS = re.compile(r"([\W_]*(clip|part|scene|seg|segment|shot|chunk)?[\W_]+\d+)+$", re.IGNORECASE)


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
    tested = _clips(test)
    shared = {source: (name, tested[source]) for source, name in _clips(train).items() if source in tested}
    return shared if len(tested) > 1 else {}


def _clips(index: Dataset) -> dict[str, str]:
    """The id of a clip of each source."""
    clips: dict[str, str] = {}
    for rows in index.select_columns(["id", "video", "group"]).iter(ROWS_AT_ONCE):
        for name, video, group in zip(rows["id"], rows["video"], rows["group"], strict=True):
            if not group and (source := source_of(video)):
                clips.setdefault(source, name)
    return clips
