"""Embed a data set: a table with the vectors of every clip, for those who only want these.

python -m recipes.embed --checkpoint runs/demo --data MANIFEST --out FILE.parquet
python -m recipes.embed --checkpoint runs/demo --data MANIFEST --out FILE.safetensors     and FILE.jsonl, row by row

Killed at any moment, the same command goes on where it stopped. The columns are those of docs/evaluation.md.
"""

import argparse
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from recipes.data.clips import NarratedClips
from recipes.data.index import load_index
from recipes.data.workers import WorkerError
from recipes.errors import ConfigError
from recipes.evaluation import vectors
from recipes.evaluation.embedding import cut, embedded
from recipes.evaluation.parts import Parts, inputs
from recipes.model.build import device_of, use_cores
from recipes.progress import progress_bar
from recipes.restore import add_options, overrides_of, restore

ROWS = 1024  # of a part: what memory holds, and what a kill costs at most
ENDINGS = (".parquet", ".safetensors")

log = logging.getLogger(__name__)


def embed(
    folder: Path, data: str, out: Path, split: str | None = None, windows: int = 1, device: str | None = None,
    overrides: Sequence[str] = (),
) -> tuple[int, int] | None:  # fmt: skip
    """Write the embeddings of all clips of a data set: one per narration, and one per video without any.

    Args:
        folder: A run's folder, or one of its checkpoints.
        data: A manifest, or a folder in any layout that is known.
        out: The .parquet or .safetensors file to write; parts that are there of the same embeddings are kept.
        split: The rows of this split; None: all.
        windows: Of each clip, averaged.
        device: See `restore`.
        overrides: See `restore`.

    Returns:
        How many clips there are, and how many of them could not be read; None where ``out`` is complete already.

    Raises:
        ConfigError, OSError, ValueError: There is no checkpoint, no data, or what is there is of something else.
        WorkerError: The processes that read clips die, whatever they read.
    """
    folder, config, tokenizer, modules = restore(folder, device=device, overrides=overrides)
    index = load_index(data, split)
    clips = NarratedClips(index, tokenizer, config.clip, windows)
    columns = vectors.schema(config)
    facts = {**inputs(folder, modules, index), "windows": windows}
    if out.exists():
        if vectors.facts_of(out) != facts:
            raise ValueError(f"{out} holds other embeddings: remove it, or choose another --out")
        log.info("%s is complete already", out)
        return None
    parts = Parts(out.with_name(f".{out.name}.parts"), columns, facts)
    modules.to(device_of(config))
    use_cores(config)
    blocks = [range(first, min(first + ROWS, len(clips))) for first in range(0, len(clips), ROWS)]
    waiting = [number for number in range(len(blocks)) if not parts.has(number)]
    batches = (batch for number in waiting for batch in cut(blocks[number], windows, config))
    total = sum(len(blocks[number]) for number in waiting)
    if total < len(clips):
        log.info("going on: %d of %d clips are embedded already", len(clips) - total, len(clips))
    stream = embedded(modules, clips, batches, config, config.data.workers)
    with progress_bar(total=total, desc="embedding", unit="clip", leave=False) as bar:
        for number in waiting:
            found = list(zip(cut(blocks[number], windows, config), stream, strict=False))
            parts.write(number, vectors.table(blocks[number], found, clips, columns))
            bar.update(len(blocks[number]))
    if out.suffix == ".parquet":
        parts.join(len(blocks), out)
    else:
        vectors.write_safetensors(lambda: parts.read(len(blocks)), out, facts)
    lost = sum(table.column("error").drop_null().length() for table in parts.read(len(blocks)))
    shutil.rmtree(parts.folder)
    return len(clips), lost


def command_line() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.embed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="a run's folder, or one of its checkpoints")
    parser.add_argument("--data", required=True, help="a manifest, or a folder in any layout of docs/data.md")
    parser.add_argument("--out", type=Path, required=True, help="the file to write: .parquet or .safetensors")
    parser.add_argument("--split", help="the rows of this split (default: all)")
    parser.add_argument("--windows", type=int, default=1, help="of each clip, averaged (default: %(default)s)")
    add_options(parser)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = command_line()
    options = parser.parse_args(arguments)
    if options.out.suffix not in ENDINGS:
        parser.error(f"--out {options.out}: expected a name that ends in {' or '.join(ENDINGS)}")
    if options.windows < 1:
        parser.error(f"--windows {options.windows}: expected 1 or more")
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        counts = embed(
            options.checkpoint, options.data, options.out, options.split, options.windows, options.device,
            overrides_of(options),
        )  # fmt: skip
    except (ConfigError, OSError, ValueError, WorkerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if counts is None:
        print(f"{options.out}: finished before; nothing to do")
    else:
        print(f"{options.out}: {counts[0]} clips, {counts[1]} of them not readable")
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main())
