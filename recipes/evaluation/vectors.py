"""Embeddings as a table, one row per clip, and a table of them as safetensors."""

import json
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from recipes.config import ModelConfig, ObjectiveConfig
from recipes.data.clips import NarratedClips
from recipes.evaluation.embedding import Embedded
from recipes.evaluation.parts import CLIP, KEY
from recipes.files import replacing
from recipes.model.vatt import SIZES

MASKS = {"video": "readable", "audio": "has_audio", "text": "has_text"}  # which clips have a vector of a modality


def schema(model: ModelConfig, objective: ObjectiveConfig) -> pa.Schema:
    """The columns of the table; a vector is null where a clip has none."""
    vectors = {"va_video": objective.audio_space, "va_audio": objective.audio_space}
    vectors |= {"vt_video": objective.text_space, "vt_text": objective.text_space}
    vectors |= {f"model_{modality}": SIZES[model.size].output for modality in MASKS}  # before the heads
    return pa.schema(
        [
            *CLIP,
            pa.field("starts", pa.list_(pa.float64())),  # of the windows, seconds of the file
            pa.field("error", pa.string()),  # why the clip could not be read, else null
            *(pa.field(name, pa.bool_()) for name in MASKS.values()),
            *(pa.field(name, pa.list_(pa.float32(), size)) for name, size in vectors.items()),
        ]
    )


def table(batches: Sequence[tuple[Sequence[int], Embedded]], clips: NarratedClips, columns: pa.Schema) -> pa.Table:
    """The rows of some clips: the numbers of those in each batch, and their embeddings."""
    rows = []
    for batch, embedded in batches:
        positions = {item: position for position, item in enumerate(embedded.items)}
        skipped = iter(embedded.skipped)
        for number in batch:
            if number in positions:
                outcome = _outcome(embedded, positions[number])
            else:
                outcome = {"error": next(skipped).reason, **dict.fromkeys(MASKS.values(), False)}
            rows.append(clips.about(number) | outcome)
    return pa.Table.from_pylist(rows, columns)


def _outcome(embedded: Embedded, position: int) -> dict[str, Any]:
    """Windows, masks and vectors of a clip that could be read."""
    valid = {"video": True, "audio": bool(embedded.audio_valid[position]), "text": bool(embedded.text_valid[position])}
    vectors = {
        name: vector[position].numpy() for name, vector in embedded.vectors.items() if valid[name.partition("_")[2]]
    }
    return {"starts": embedded.starts[position].tolist()} | {MASKS[name]: valid[name] for name in valid} | vectors


def write_safetensors(tables: Callable[[], Iterator[pa.Table]], count: int, schema: pa.Schema, out: Path) -> None:
    """Write vectors and masks as tensors with a row for each clip, the other columns as JSON lines beside them.

    Where a clip has no vector, there are zeros. Memory holds one table: the format is a header of known length, then
    one tensor after another.

    Args:
        tables: Gives the tables, as often as it is called.
        count: Number of their rows.
        schema: Schema of the tables, with facts in its metadata.
        out: The file; the lines go to the same name, ending in .jsonl.
    """
    widths = {field.name: field.type.list_size for field in schema if pa.types.is_fixed_size_list(field.type)}
    shapes = {name: ([count, width], "F32", 4) for name, width in widths.items()}
    shapes |= {name: ([count], "BOOL", 1) for name in MASKS.values()}  # single bytes last: aligned
    header: dict[str, Any] = {"__metadata__": {KEY.decode(): schema.metadata[KEY].decode()}}
    end = 0
    for name, (shape, kind, size) in shapes.items():
        begin, end = end, end + size * math.prod(shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    rest = [name for name in schema.names if name not in shapes]
    with replacing(out) as temporary, replacing(out.with_suffix(".jsonl")) as lines:
        with temporary.open("wb") as file:
            file.write(struct.pack("<Q", len(head)) + head)
            file.writelines(_dense(table.column(name), widths.get(name)) for name in shapes for table in tables())
        with lines.open("w", encoding="utf-8") as file:
            rows = (row for table in tables() for row in table.select(rest).to_pylist())
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _dense(column: pa.ChunkedArray, width: int | None) -> bytes:
    """The bytes of a mask, or of vectors of a width: zero where they are null."""
    array = column.combine_chunks()
    if width is None:
        return array.to_numpy(zero_copy_only=False).astype(np.bool_).tobytes()
    dense = np.zeros((len(array), width), np.float32)
    dense[array.is_valid().to_numpy(zero_copy_only=False)] = array.flatten().to_numpy().reshape(-1, width)
    return dense.tobytes()  # flatten leaves the nulls out


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
