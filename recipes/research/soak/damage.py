"""Shards of a data set some of whose videos are broken in the ways that downloads are."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from recipes.data import manifest, shards, storage
from recipes.data.index import load_index
from recipes.data.pack import add

PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut off": lambda data: data[: len(data) // 2],
    "noise": lambda data: np.random.default_rng(len(data)).bytes(len(data)),
    "a page of HTML": lambda _: b"<!DOCTYPE html><title>Video unavailable</title>" * 20,
    "a playlist": lambda _: PLAYLIST,
}
CLIPS = 32  # of a shard


def damaged_shards(data: str, out: Path, share: float, seed: int) -> dict[str, str]:
    """Write shards of a data set and break a share of its videos on the way; returns what was done to which id."""
    index, rng = load_index(data), np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(index))[: round(share * len(index))]).tolist()
    kinds = {row: list(DAMAGES)[number % len(DAMAGES)] for number, row in enumerate(chosen)}
    out.mkdir(parents=True)
    for first in range(0, len(index), CLIPS):
        with tarfile.open(out / f"train-{first // CLIPS:06d}{shards.ENDING}", "w") as tar:
            for number in range(first, min(first + CLIPS, len(index))):
                row = index[number]
                with storage.open_bytes(row["video"]) as file:
                    video = file.read()
                about = manifest.fields_of(row, "")
                video = DAMAGES[kinds[number]](video) if number in kinds else video
                add(tar, f"{number:06d}.mp4", io.BytesIO(video))
                add(tar, f"{number:06d}.json", io.BytesIO(json.dumps(about).encode()))
    ids = index["id"]
    return {ids[row]: kind for row, kind in kinds.items()}
