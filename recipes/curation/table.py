"""The table of scores and weights of all pairs: written in parts, one row for each clip."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import nn

from recipes.config import DataConfig
from recipes.curation.judging import SPACES, Bank, Embeddings, embed_batches
from recipes.data.clips import NarratedClips
from recipes.evaluation.parts import CLIP, Parts
from recipes.files import replacing
from recipes.progress import progress_bar
from recipes.training.processes import Processes

BATCH = 64  # clips that are embedded together
BATCHES = 16  # of one part of the table
SCORES = pa.schema(
    [
        *CLIP,
        pa.field("start", pa.float64()),  # of the window, in seconds
        *(pa.field(f"{figure}_{space}", pa.float32()) for figure in ("score", "spread") for space in SPACES),
        pa.field("error", pa.string()),  # why the clip could not be read
    ]
)
WEIGHTS = [pa.field(f"weight_{space}", pa.float32()) for space in SPACES]


def blocks(number: int) -> list[range]:
    """The clips of each part of the table."""
    size = BATCH * BATCHES
    return [range(first, min(first + size, number)) for first in range(0, number, size)]


def score(
    filters: Sequence[nn.ModuleDict],
    clips: NarratedClips,
    bank: Bank,
    left_out: np.ndarray,
    parts: Parts,
    data: DataConfig,
    group: Processes,
) -> None:
    """Write the table of scores; go on with one that was begun. Processes share its parts."""
    with group.first_ahead():
        parts.begin()
    missing = {n: block for n, block in parts.missing().items() if n % group.world == group.rank}
    batches = [block[i : i + BATCH] for block in missing.values() for i in range(0, len(block), BATCH)]
    stream = embed_batches(filters, clips, batches, data)
    with progress_bar(
        total=sum(map(len, missing.values())), desc="judging", unit="clip", disable=not group.first
    ) as bar:
        for number, block in missing.items():
            rows: list[dict[str, Any]] = []
            for first in range(0, len(block), BATCH):
                rows += judged_rows(clips, block[first : first + BATCH], next(stream), bank, left_out)
                bar.update(len(block[first : first + BATCH]))
            parts.write(number, pa.Table.from_pylist(rows, schema=SCORES))
    group.wait()
    if group.first:
        parts.join()
        parts.remove()
    group.wait()


def judged_rows(
    clips: NarratedClips, numbers: range, embedded: Embeddings, bank: Bank, left_out: np.ndarray
) -> Iterator[dict[str, Any]]:
    """Rows of the table of scores, one for each clip of a batch."""
    judges = left_out[:, [clips.row((clip, 0)) for clip in embedded.clips]]
    figures = {space: bank.judge(embedded, judges, space) for space in SPACES} if embedded.clips else {}
    position, skipped = {clip: place for place, clip in enumerate(embedded.clips)}, iter(embedded.skipped)
    for clip in numbers:
        about = clips.about(clip)
        if clip not in position:
            yield about | {"error": next(skipped).reason}
            continue
        place = position[clip]
        for space, (mean, spread) in figures.items():
            for name, values in (("score", mean), ("spread", spread)):
                about[f"{name}_{space}"] = float(values[place]) if np.isfinite(values[place]) else None
        yield about | {"start": embedded.starts[place]}


def write_table(scores: Path, weights: dict[str, np.ndarray], out: Path) -> None:
    """Write the table of scores again, with the weights (N,) of each pair of modalities."""
    with pq.ParquetFile(scores) as table, replacing(out) as temporary:
        columns = pa.schema([*table.schema_arrow, *WEIGHTS], metadata=table.schema_arrow.metadata)
        first = 0
        with pq.ParquetWriter(temporary, columns) as writer:
            for batch in table.iter_batches(1 << 16):
                rows = slice(first, first := first + len(batch))
                added = [pa.array(weights[space][rows], pa.float32()) for space in SPACES]
                writer.write_table(pa.table([*batch.columns, *added], schema=columns))
