"""Embed a data set: a table with the vectors of every clip, for those who only want these.

python -m recipes.embed checkpoint=runs/demo data=MANIFEST out=FILE.parquet
python -m recipes.embed checkpoint=runs/demo data=MANIFEST out=FILE.safetensors     and FILE.jsonl, row by row

Killed at any moment, the same command goes on where it stopped. The columns are those of docs/evaluation.md.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from recipes import cli
from recipes.data.clips import NarratedClips
from recipes.data.index import load_index
from recipes.evaluation import vectors
from recipes.evaluation.embedding import cut, embedded
from recipes.evaluation.parts import Parts, inputs
from recipes.files import check_place
from recipes.keys import key
from recipes.progress import progress_bar
from recipes.restore import EmbeddingKeys, Restored, restore_with

ROWS = 1024  # of a part: what memory holds, and what a kill costs at most
ENDINGS = (".parquet", ".safetensors")

log = logging.getLogger(__name__)


@dataclass
class EmbedKeys(EmbeddingKeys):
    """What to embed."""

    data: str = key(meaning="a manifest, or a folder in any layout of docs/data.md")
    out: Path = key(meaning="file to write, ending in .parquet or .safetensors")
    split: str | None = key(None, "embed the rows of this split; null: all")
    windows: int = key(1, "windows of each clip, averaged", least=1, most=1000)

    def problems(self) -> Iterator[str]:
        """A file of another kind."""
        if self.out.suffix not in ENDINGS:
            yield f"out={self.out}: expected a name that ends in {' or '.join(ENDINGS)}"


class Job(NamedTuple):
    """The model, the clips (one per narration, and one per video without any), and the parts of the table."""

    restored: Restored
    clips: NarratedClips
    parts: Parts


def prepare(keys: EmbedKeys) -> Job:
    """Load the checkpoint and the lists of the data; a ValueError if `out` or its parts hold other embeddings."""
    check_place(keys.out)
    restored = restore_with(keys)
    config, index = restored.config, load_index(keys.data, keys.split)
    clips = NarratedClips(index, restored.tokenizer, config.clip, keys.windows)
    count = len(clips)
    blocks = [range(first, min(first + ROWS, count)) for first in range(0, count, ROWS)]
    facts = {**inputs(restored.folder, restored.modules, index), "windows": keys.windows}
    if keys.out.exists() and vectors.facts_of(keys.out) != facts:
        raise ValueError(f"{keys.out} holds other embeddings: remove it, or choose another out=")
    schema = vectors.schema(config.model, config.objective)
    return Job(restored, clips, Parts(keys.out, schema, facts, blocks))


def plan(keys: EmbedKeys) -> str:
    """What would be done, and what is done already."""
    restored, clips, parts = prepare(keys)
    if keys.out.exists():
        return f"{keys.out}: finished before; nothing to do"
    count, missing = len(parts.blocks), len(parts.missing())
    text = f"{len(clips)} clips of {keys.data}, {keys.windows} window(s) each"
    return f"{text}, would be embedded by {restored.folder} in {count} part(s); {count - missing} part(s) are done"


def embed(keys: EmbedKeys) -> None:
    """Write the embeddings of all clips of a data set; parts that an earlier command finished are kept."""
    job = prepare(keys)
    _, clips, parts = job
    if keys.out.exists():
        print(f"{keys.out}: finished before; nothing to do")
        return
    parts.begin()
    write_parts(job)
    if keys.out.suffix == ".parquet":
        parts.join()
    else:
        vectors.write_safetensors(parts.read, len(clips), parts.schema, keys.out)
    unreadable = sum(table.column("error").drop_null().length() for table in parts.read())
    parts.remove()
    print(f"{keys.out}: {len(clips)} clips, {unreadable} of them not readable")


def write_parts(job: Job) -> None:
    """Embed the clips of those parts that are missing."""
    (_, config, _, modules), clips, parts = job
    missing = parts.missing()
    total = sum(map(len, missing.values()))
    if total < len(clips):
        log.info("going on: %d of %d clips are embedded already", len(clips) - total, len(clips))

    def batches(block: range) -> Iterator[range]:
        return cut(block, clips.windows, config.evaluate.batch_size)

    every = (batch for block in missing.values() for batch in batches(block))
    stream = embedded(modules, clips, every, config.data)
    with progress_bar(total=total, desc="embedding", unit="clip", leave=False) as bar:
        for number, block in missing.items():
            outcomes = list(zip(batches(block), stream, strict=False))
            parts.write(number, vectors.table(outcomes, clips, parts.schema))
            bar.update(len(block))


COMMAND = cli.Command("recipes.embed", __doc__, EmbedKeys, embed, plan)
main = COMMAND.main

if __name__ == "__main__":
    cli.exit(main)
