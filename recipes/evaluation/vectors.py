"""Embeddings as a table, one row per clip, and a table of them as safetensors."""

import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from recipes.config import Config
from recipes.data.clips import NarratedClips
from recipes.evaluation.embedding import Embedded
from recipes.evaluation.parts import KEY
from recipes.model.vatt import SIZES

MASKS = ("readable", "has_audio", "has_text")
NUMPY = {"F32": np.float32, "BOOL": np.bool_}  # safetensors' names of types


def schema(config: Config) -> pa.Schema:
    """The columns; a vector is null where a clip has none."""
    spaces, width = config.objective, SIZES[config.model.size].output
    vectors = {
        "va_video": spaces.audio_space, "va_audio": spaces.audio_space,
        "vt_video": spaces.text_space, "vt_text": spaces.text_space,
        "model_video": width, "model_audio": width, "model_text": width,  # before the heads
    }  # fmt: skip
    return pa.schema(
        [
            pa.field("clip", pa.int64()),  # number in the order of the data
            pa.field("id", pa.string()),
            pa.field("video", pa.string()),  # locator
            pa.field("narration", pa.int32()),  # position in the video's list; -1 for a video without any
            pa.field("caption", pa.string()),
            pa.field("starts", pa.list_(pa.float64())),  # of the windows, seconds of the file
            pa.field("error", pa.string()),  # why the clip could not be read, else null
            *(pa.field(name, pa.bool_()) for name in MASKS),
            *(pa.field(name, pa.list_(pa.float32(), size)) for name, size in vectors.items()),
        ]
    )


def table(numbers: Sequence[int], batches: Sequence[tuple[Sequence[int], Embedded]], clips: NarratedClips,
          columns: pa.Schema) -> pa.Table:  # fmt: skip
    """The rows of some clips.

    Args:
        numbers: The clips, one after another.
        batches: The same in batches, and what became of each.
        clips: Where they were read from.
        columns: See `schema`.
    """
    places = {name: np.zeros(len(numbers), bool) for name in MASKS}
    vectors = {f.name: np.zeros((len(numbers), f.type.list_size), np.float32) for f in columns if _is_vector(f)}
    starts: list[list[float] | None] = [None] * len(numbers)
    errors: list[str | None] = [None] * len(numbers)
    for batch, found in batches:
        rows = [item - numbers[0] for item in found.items]
        lost = sorted({item - numbers[0] for item in batch} - set(rows))
        for row, skipped in zip(lost, found.skipped, strict=True):
            errors[row] = skipped.reason
        if not rows:
            continue
        places["readable"][rows] = True
        places["has_audio"][rows], places["has_text"][rows] = found.audio_valid, found.text_valid
        for name, vector in _vectors(found).items():
            vectors[name][rows] = vector
        for row, windows in zip(rows, found.starts.tolist(), strict=True):
            starts[row] = windows
    about = [clips.place(number) for number in numbers]
    captions = [row["narrations"][at]["text"] if at >= 0 else "" for row, at in about]
    told = {
        "clip": list(numbers), "id": [row["id"] for row, _ in about], "video": [row["video"] for row, _ in about],
        "narration": [at for _, at in about], "caption": captions, "starts": starts, "error": errors, **places,
    }  # fmt: skip
    arrays = [
        pa.FixedSizeListArray.from_arrays(
            pa.array(vectors[f.name].ravel()), f.type.list_size, mask=pa.array(~places[_mask(f.name)])
        )
        if f.name in vectors
        else pa.array(told[f.name], f.type)
        for f in columns
    ]
    return pa.Table.from_arrays(arrays, schema=columns)


def write_safetensors(read: Callable[[], Iterator[pa.Table]], out: Path, facts: dict[str, Any]) -> None:
    """Write vectors and masks as tensors with a row for each clip, the other columns as JSON lines beside them.

    Where a clip has no vector, there are zeros. Memory holds one table: the format is a header of known length, then
    one tensor after another.

    Args:
        read: Gives the tables, as often as it is called.
        out: The file; the lines go to the same name, ending in .jsonl.
        facts: What the embeddings are of, for `facts_of`.
    """
    count, columns = 0, None
    lines = out.with_name(f".{out.stem}.jsonl.tmp")
    with lines.open("w", encoding="utf-8") as file:
        for part in read():
            count, columns = count + len(part), part.schema
            rest = part.select([f.name for f in part.schema if not _is_tensor(f)])
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rest.to_pylist())
    tensors = sorted(filter(_is_tensor, columns), key=_is_vector, reverse=True)  # single bytes last: aligned
    header: dict[str, Any] = {"__metadata__": {KEY.decode(): json.dumps(facts)}}
    end = 0
    for f in tensors:
        kind, shape = ("F32", [count, f.type.list_size]) if _is_vector(f) else ("BOOL", [count])
        begin, end = end, end + int(np.prod(shape)) * np.dtype(NUMPY[kind]).itemsize
        header[f.name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    temporary = out.with_name(f".{out.name}.tmp")
    with temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for f in tensors:
            for part in read():
                file.write(_dense(part.column(f.name), f).tobytes())
    os.replace(lines, out.with_suffix(".jsonl"))
    os.replace(temporary, out)


def facts_of(out: Path) -> dict[str, Any] | None:
    """What the embeddings of a file are of; None where it does not say so."""
    try:
        if out.suffix == ".parquet":
            metadata = {key.decode(): value for key, value in (pq.read_schema(out).metadata or {}).items()}
        else:
            with safe_open(out, "numpy") as file:
                metadata = file.metadata() or {}
        facts: dict[str, Any] = json.loads(metadata[KEY.decode()])
    except (OSError, SafetensorError, pa.ArrowException, KeyError, ValueError):
        return None
    return facts


def _dense(column: pa.ChunkedArray, field: pa.Field) -> np.ndarray:
    """A column of vectors, zero where they are null, or of truth values."""
    array = column.combine_chunks()
    if not _is_vector(field):
        return array.to_numpy(zero_copy_only=False).astype(np.bool_)
    there = array.is_valid().to_numpy(zero_copy_only=False)
    dense = np.zeros((len(array), field.type.list_size), np.float32)
    dense[there] = array.flatten().to_numpy().reshape(-1, field.type.list_size)  # flatten leaves the nulls out
    return dense


def _vectors(found: Embedded) -> dict[str, np.ndarray]:
    (va_video, va_audio), (vt_video, vt_text) = found.spaces["va"], found.spaces["vt"]
    spaces = {"va_video": va_video, "va_audio": va_audio, "vt_video": vt_video, "vt_text": vt_text}
    before = {f"model_{modality}": vector for modality, vector in found.representations.items()}
    return {name: vector.numpy() for name, vector in (spaces | before).items()}


def _mask(vector: str) -> str:
    return {"audio": "has_audio", "text": "has_text"}.get(vector.partition("_")[2], "readable")


def _is_vector(field: pa.Field) -> bool:
    return pa.types.is_fixed_size_list(field.type)


def _is_tensor(field: pa.Field) -> bool:
    return _is_vector(field) or field.name in MASKS
