"""Tables of scores and a checkpoint, as `recipes.score` and `recipes.pretrain` write them, for tests of the gallery."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from recipes import keys
from recipes.config import Config
from recipes.data import vocabulary
from recipes.model.build import build
from recipes.training import checkpoint

SCHEMA = pa.schema(
    [
        ("clip", pa.int64()), ("id", pa.string()), ("video", pa.string()), ("narration", pa.int32()),
        ("caption", pa.string()), ("start", pa.float64()), ("end", pa.float64()), ("cosine", pa.float32()),
        ("error", pa.string()),
    ]
)  # fmt: skip


def row(clip: int, video: Path, caption: str, start: float, cosine: float | None, seconds: float = 0.8, **values: Any):
    """One row of a table of scores."""
    return {
        "clip": clip, "id": video.stem, "video": str(video), "narration": 0, "caption": caption, "start": start,
        "end": start + seconds, "cosine": cosine, "error": None, **values,
    }  # fmt: skip


def write_table(path: Path, rows: list[dict[str, Any]], row_group_size: int = 7, **metadata: Any) -> Path:
    """Write a table in many row groups."""
    schema = SCHEMA.with_metadata({b"harmony": json.dumps(metadata).encode()})
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=row_group_size)
    return path


def write_checkpoint(folder: Path, config: Config, captions: list[str]) -> Path:
    """Write an untrained model that knows the words of some captions; its batch statistics are of upright bars."""
    tokenizer = vocabulary.build(captions)
    torch.manual_seed(0)
    modules = build(config, tokenizer)
    shape = config.clip
    bars = torch.randint(0, 2, (256, shape.frames, 1, 8, 1)).repeat_interleave(shape.size // 8, dim=3) * 255
    videos = bars.expand(-1, -1, shape.size, -1, 3).to(torch.uint8)
    norms = [part for part in modules.modules() if isinstance(part, torch.nn.BatchNorm1d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        modules["objective"].va_to_vt(modules["objective"].video_to_va(modules["model"].encode("video", videos)))
    return checkpoint.save(
        folder, 1, modules, {}, {},
        lambda place: keys.save(config, place / "config.yaml"),
        lambda place: vocabulary.save(tokenizer, place / "vocabulary.json"),
    )  # fmt: skip
