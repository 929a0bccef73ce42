"""YouTube-8M's official frame features: TFRecord shards of pictures and sound as vectors, one a second."""

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from recipes.data.decode import BrokenClip
from recipes.data.encoding import clean
from recipes.data.layouts.layout import Layout, Row, listed_lines
from recipes.data.protobuf import message_classes, read_varint
from recipes.data.shards import split_of
from recipes.data.tfrecord import read_record, records

SHARDS = "*.tfrecord"
TEXTS = "texts.jsonl"
RGB, AUDIO = 1024, 128  # widths of the features
HEAD = 4096  # bytes of a record in which its id is: the context comes first
LOW, HIGH = -2.0, 2.0  # what the bytes 0 and 255 stand for, before half a step is added
SequenceExample = message_classes(  # with the field numbers of TensorFlow's feature.proto and example.proto
    "harmony.sequence_example",
    BytesList="repeated bytes value = 1",
    Int64List="repeated int64 value = 1",
    Feature="BytesList bytes_list = 1; Int64List int64_list = 3",
    Features="map Feature entry = 1",
    FeatureList="repeated Feature feature = 1",
    FeatureLists="map FeatureList entry = 1",
    SequenceExample="Features context = 1; FeatureLists feature_lists = 2",
)["SequenceExample"]


@dataclass(frozen=True)
class Features:
    """The features of a video: `rgb` uint8 (seconds, 1024), `audio` uint8 (seconds, 128), None if it has none."""

    rgb: np.ndarray
    audio: np.ndarray | None


def read_youtube8m(root: Path) -> Iterator[Row]:
    """Reads frame-level shards, `train*.tfrecord` and such; `texts.jsonl` may have texts: {"id", "text"}.

    Only the head of each record is read. What follows a damaged length in a shard is left out, with a warning. The
    `video` of a row is "shard#offset", see `read_features`.
    """
    texts = _texts(root / TEXTS) if (root / TEXTS).is_file() else {}
    for shard in sorted(root.absolute().glob(SHARDS)):
        split = split_of(shard.name)
        try:
            for offset, head in records(shard, HEAD):
                name = _id(head) or f"{shard.stem}#{offset}"
                text = texts.get(name)
                narrations = [{"start": 0.0, "end": np.inf, "text": text}] if text else []
                yield {"id": name, "video": f"{shard}#{offset}", "split": split, "narrations": narrations}
        except BrokenClip as broken:
            warnings.warn(f"{broken}; the rest of this shard is left out", stacklevel=2)


def read_features(locator: str) -> Features:
    """Reads the features of one video, "shard#offset"; a BrokenClip if they cannot be read."""
    path, _, offset = locator.rpartition("#")
    if not offset.isdecimal():
        raise BrokenClip(locator, "expected the features of a video, SHARD#OFFSET, as the run's clip.inputs says")
    data = read_record(Path(path), int(offset))
    try:
        lists = SequenceExample.FromString(data).feature_lists.entry
    except DecodeError as error:
        raise BrokenClip(locator, "the record is not a SequenceExample") from error
    rgb, audio = _rows(locator, lists, "rgb", RGB), _rows(locator, lists, "audio", AUDIO)
    if not len(rgb):
        raise BrokenClip(locator, f"expected a feature list rgb; found {', '.join(sorted(lists)) or 'none'}")
    seconds = min(len(rgb), len(audio) or len(rgb))  # they may differ by one
    return Features(rgb[:seconds], audio[:seconds] if len(audio) else None)


def dequantize(features: np.ndarray) -> np.ndarray:
    """The numbers that bytes stand for, as in the official code: uint8 -> float32 of the same shape, in [-2, 2].

    >>> dequantize(np.array([0, 128, 255], np.uint8)).tolist()
    [-1.9921875, 0.015..., 2.0078125]
    """
    step = (HIGH - LOW) / 255
    return (features * np.float32(step) + np.float32((HIGH - LOW) / 512 + LOW)).astype(np.float32)


def _rows(locator: str, lists: Any, name: str, width: int) -> np.ndarray:
    """A feature list as uint8 (seconds, width); (0, width) without one."""
    if name not in lists:
        return np.zeros((0, width), np.uint8)
    rows = [b"".join(feature.bytes_list.value) for feature in lists[name].feature]
    if wrong := {len(row) for row in rows} - {width}:
        raise BrokenClip(locator, f"expected {width} bytes of {name} a second; found {min(wrong)}")
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, width)


def _id(head: bytes) -> str:
    """The id in the context at the head of a record; "": there is none."""
    try:
        size, at = read_varint(head, 1)
        context = SequenceExample.FromString(head[: at + size]).context if head[0] == 0x0A else None
        return context.entry["id"].bytes_list.value[0].decode() if context and "id" in context.entry else ""
    except (DecodeError, IndexError, UnicodeDecodeError):
        return ""


def _texts(path: Path) -> dict[str, str]:
    texts = {}
    for where, line in listed_lines(path):
        try:
            row = json.loads(line)
            texts[row["id"]] = clean(row["text"])
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f'{where}: expected {{"id": "...", "text": "..."}}; found {line[:80]}') from error
    return texts


LAYOUT = Layout("YouTube-8M", (SHARDS,), read_youtube8m)
