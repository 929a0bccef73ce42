"""A long table that is written in parts, each whole or absent: killed at any moment, its maker goes on."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from torch import nn

from recipes.files import digest, replacing, write_atomically
from recipes.training import checkpoint

CLIP = [
    pa.field("clip", pa.int64()),  # number in the order of the data
    pa.field("id", pa.string()),
    pa.field("video", pa.string()),  # locator
    pa.field("narration", pa.int32()),  # position in the video's list; -1 for a video without any
    pa.field("caption", pa.string()),
]
"""The first columns of a table of clips, see `NarratedClips.about`."""
KEY = b"harmony"  # of the facts in a table's metadata
FACTS = "facts.json"  # of what a folder of parts belongs to


class Parts:
    """Parts of a table that is being written, each a Parquet file that is whole or absent."""

    def __init__(self, out: Path, schema: pa.Schema, facts: dict[str, Any], blocks: list[range]) -> None:
        """Parts, beside ``out``, of a table of and by ``facts``; a ValueError if they were begun with other facts.

        ``blocks`` are the clips of each part.
        """
        self.out, self.facts, self.blocks = out, facts, blocks
        self.schema = schema.with_metadata({KEY: json.dumps(facts).encode()})
        self.folder = folder = out.with_name(f".{out.name}.parts")
        if (folder / FACTS).exists():
            begun = json.loads((folder / FACTS).read_text(encoding="utf-8"))
            changed = sorted(k for k in begun.keys() | facts.keys() if begun.get(k) != facts.get(k))
            if changed:
                raise ValueError(
                    f"{folder} holds what another command began ({', '.join(changed)} differ): remove the folder, or "
                    "choose another out="
                )

    def begin(self) -> None:
        """Make the folder, unless it is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / FACTS).exists():
            write_atomically(self.folder / FACTS, json.dumps(self.facts))

    def missing(self) -> dict[int, range]:
        """The blocks of the parts that are not written, by their number."""
        return {number: block for number, block in enumerate(self.blocks) if not self._path(number).exists()}

    def write(self, number: int, table: pa.Table) -> None:
        """Write a part; a kill leaves it whole or absent."""
        with replacing(self._path(number)) as temporary:
            pq.write_table(table.cast(self.schema), temporary)

    def read(self) -> Iterator[pa.Table]:
        """All parts, one at a time."""
        return (pq.read_table(self._path(number), schema=self.schema) for number in range(len(self.blocks)))

    def join(self) -> None:
        """Write all parts as one table, a part at a time."""
        with replacing(self.out) as temporary, pq.ParquetWriter(temporary, self.schema) as writer:
            for part in self.read():
                writer.write_table(part)

    def remove(self) -> None:
        """Remove the folder, when all is written to ``out``."""
        shutil.rmtree(self.folder)

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:08d}.parquet"


def inputs(folder: Path, modules: nn.Module, index: Dataset) -> dict[str, Any]:
    """Facts that tell a checkpoint and the rows of an index from others."""
    weights = (weight.numpy(force=True).tobytes() for weight in modules.state_dict().values())
    return {
        "checkpoint": str(folder.absolute()),
        "step": checkpoint.load_facts(folder)["step"],
        "weights": digest(weights)[:16],
        "rows": digest(repr(row).encode() for row in index)[:16],
    }
