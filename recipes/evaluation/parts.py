"""A long table that is written in parts, each whole or absent: killed at any moment, its maker goes on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from torch import nn

from recipes.files import digest, replacing, write_atomically
from recipes.training import checkpoint

KEY = b"harmony"  # of the facts in a table's metadata
FACTS = "facts.json"  # of what a folder of parts belongs to


class Parts:
    """Parts of a table that is being written, each a Parquet file that is whole or absent."""

    def __init__(self, folder: Path, schema: pa.Schema, facts: dict[str, Any]) -> None:
        """Parts of a table that is made of and by ``facts``; a ValueError if the folder was begun with other facts."""
        self.folder, self.schema = folder, schema.with_metadata({KEY: json.dumps(facts).encode()})
        self.facts = facts
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

    def has(self, number: int) -> bool:
        """Whether a part is written."""
        return self._path(number).exists()

    def write(self, number: int, table: pa.Table) -> None:
        """Write a part; a kill leaves it whole or absent."""
        with replacing(self._path(number)) as temporary:
            pq.write_table(table.cast(self.schema), temporary)

    def read(self, count: int) -> Iterator[pa.Table]:
        """Parts 0 to ``count``, one at a time."""
        return (pq.read_table(self._path(number), schema=self.schema) for number in range(count))

    def join(self, count: int, out: Path) -> None:
        """Write parts 0 to ``count`` as one table, a part at a time."""
        with replacing(out) as temporary, pq.ParquetWriter(temporary, self.schema) as writer:
            for part in self.read(count):
                writer.write_table(part)

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
