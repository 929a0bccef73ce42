"""Score a data set: one row per clip, with the cosine of its two gradients and plainer figures beside it.

python -m recipes.score --checkpoint runs/demo --out scores.parquet [--data MANIFEST] [--iterations 200]
python -m recipes.score ... --keep 0.95          also writes scores.kept.jsonl, a manifest for recipes.pretrain
torchrun --nproc-per-node 2 -m recipes.score ... several processes

Killed at any moment, the same command goes on where it stopped; the table is the same in the end, and the same for any
number of processes.
"""

import argparse
import logging
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from torch import nn

from recipes.config import Config
from recipes.data.clips import Clip, NarratedClips, Skipped
from recipes.data.index import load_index
from recipes.data.loader import list_loader
from recipes.data.workers import WorkerError
from recipes.errors import ConfigError, DataError
from recipes.evaluation.parts import Parts, inputs
from recipes.model.build import check_wrt, device_of, use_cores
from recipes.progress import progress_bar
from recipes.restore import add_options, load_config, overrides_of, own_data, restore
from recipes.scoring.keep import filtered_manifest
from recipes.scoring.measure import FIGURES, Reading, measure
from recipes.scoring.order import shuffled
from recipes.scoring.table import SCHEMA, columns, facts_of
from recipes.scoring.tune import tune
from recipes.splits import held_out
from recipes.training import checkpoint
from recipes.training.processes import ALONE, Processes, joined

log = logging.getLogger(__name__)

POOL = 4  # batches that are in memory at a time, and one part of the table


@dataclass(frozen=True)
class Options:
    """How to score, beside how the gradients are read.

    Attributes:
        iterations: Steps of further optimisation before.
        batch_size: Clips that are measured together, each against the others.
        draws: How often a clip is measured, each time among other mates; the figures are means.
        windows: Through how many windows, spread over its narration; the figures are means.
        seed: Of the mates, and of the further optimisation.
    """

    iterations: int = 0
    batch_size: int = 64
    draws: int = 1
    windows: int = 1
    seed: int = 0


def score(
    folder: Path, out: Path, data: str | None = None, split: str | None = None,
    reading: Reading | None = None, options: Options | None = None, group: Processes = ALONE,
    device: str | None = None, overrides: Sequence[str] = (),
) -> Path:  # fmt: skip
    """Write the table of scores; go on with one that was begun.

    Memory holds `POOL` batches of clips and their windows, whatever the size of the data set. Under torchrun, processes
    share the parts of the table among them.

    Args:
        folder: A run's folder, or one of its checkpoints.
        out: The Parquet file to write; what is there of the same scoring is kept.
        data: A manifest, or a folder in HowTo100M's layout; None: what the run was trained on.
        split: Score the rows of this split; None: all of them.
        reading: How the gradients are read.
        options: How to score.
        group: The processes that share the parts.
        device: See `restore`.
        overrides: See `restore`.

    Returns:
        ``out``.

    Raises:
        FileNotFoundError: No checkpoint, no data.
        ValueError: ``out`` holds another scoring; the data or an option cannot be used.
    """
    reading, options = reading or Reading(), options or Options()
    folder, config, tokenizer, modules = restore(folder, device=device, overrides=overrides)
    if config.clip.inputs != "raw":
        raise ConfigError(f"{folder}: was trained on features (clip.inputs); only clips of raw media can be scored")
    modules.to(device_of(config))
    use_cores(config)
    index = indexed(config, data, split)
    if reading.space == "parameters":
        check_wrt(reading.wrt, modules["model"], "--wrt")
    facts = {
        **inputs(folder, modules, index), "data": data or "the run's training data", "split": split or "",
        **asdict(options), **asdict(reading),
    }  # fmt: skip
    if out.exists():
        if facts_of(out) != facts:
            raise ValueError(f"{out} holds another scoring: remove it, or choose another --out")
        log.info("%s is complete already", out)
        return out

    with group.first_ahead():  # which makes the folder
        parts = Parts(out.with_name(f".{out.name}.parts"), SCHEMA, facts)
    if options.iterations:
        with group.first_ahead():  # which tunes; the others load what it found
            tuned = parts.folder / "tuned.safetensors"
            tune(modules, config, index, tokenizer, options.iterations, options.batch_size, options.seed, tuned)
    modules.eval().requires_grad_(False)

    clips = NarratedClips(index, tokenizer, config.clip, options.windows)
    pools = cut(len(clips), POOL * options.batch_size)
    waiting = [n for n in range(group.rank, len(pools), group.world) if not parts.has(n)]
    total = sum(len(pools[n]) for n in range(group.rank, len(pools), group.world))
    done = total - sum(len(pools[n]) for n in waiting)
    if done:
        log.info("going on: %d of %d clips are scored already", done, len(clips))
    with progress_bar(total=total, initial=done, desc="scoring", unit="clip", disable=not group.first) as bar:
        for number, pool in zip(waiting, read(clips, [pools[n] for n in waiting], config, options), strict=True):
            table = rows(pool, modules, clips, reading, options, number)
            parts.write(number, pa.Table.from_pylist(table, schema=SCHEMA))
            bar.update(len(pool))
    group.wait()
    if group.first:
        parts.join(len(pools), out)
        shutil.rmtree(parts.folder)
    group.wait()
    return out


def indexed(config: Config, data: str | None, split: str | None) -> Dataset:
    """The rows to score."""
    if data is not None:
        return load_index(data, split)
    if split not in (None, "train", "test"):
        raise ValueError(f"--split {split}: without --data it is train or test")
    splits = own_data(config)
    return splits.test if split == "test" else splits.train


def cut(number: int, size: int) -> list[range]:
    """Positions 0 to ``number`` in pools of ``size`` or more: none is so small that a clip has few mates."""
    pools = max(number // size, 1)
    return [range(p * number // pools, (p + 1) * number // pools) for p in range(pools)]


Windows = list[Clip | Skipped]


def read(
    clips: NarratedClips, pools: list[range], config: Config, options: Options
) -> Iterator[list[tuple[int, Windows]]]:
    """Read pools of clips, which are drawn from the whole data set at random, each with its windows."""

    def numbers(pool: range) -> list[int]:
        return shuffled(np.array(pool), len(clips), options.seed).tolist()

    size, windows = options.batch_size, range(options.windows)
    parts = (pool[i : i + size] for pool in pools for i in range(0, len(pool), size))
    keys = ([(clip, window) for clip in numbers(part) for window in windows] for part in parts)
    loader = list_loader(clips, keys, config.data.workers, config.data.timeout, config.data.prefetch_gib)
    items = (item for batch in loader for item in batch)
    for pool in pools:
        yield [(clip, [next(items) for _ in windows]) for clip in numbers(pool)]


def rows(
    pool: list[tuple[int, Windows]], modules: nn.ModuleDict, clips: NarratedClips, reading: Reading, options: Options,
    number: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Measure a pool, and make its rows of the table, in the pool's order."""
    measured = [(window, draw) for window in range(options.windows) for draw in range(options.draws)]
    figures = {name: np.full((len(measured), len(pool)), np.nan) for name in FIGURES}
    for i, (window, draw) in enumerate(measured):
        there = [(row, seen[window]) for row, (_, seen) in enumerate(pool) if isinstance(seen[window], Clip)]
        order = np.random.default_rng([options.seed, number, window, draw]).permutation(len(there))
        for mates in np.array_split(order, max(len(there) // options.batch_size, 1)) if len(there) > 1 else []:
            found = measure(modules, [there[m][1] for m in mates], reading)
            for name, column in found.items():
                figures[name][i, [there[m][0] for m in mates]] = column
    means = {name: by_measure.mean(0) for name, by_measure in figures.items()}
    table = []
    for row, (clip, seen) in enumerate(pool):
        video, narration = clips.place(clip)
        starts = [item.start for item in seen if isinstance(item, Clip)]
        reasons = [item.reason for item in seen if isinstance(item, Skipped)]
        table.append(
            {
                "clip": clip, "id": video["id"], "video": video["video"], "narration": narration,
                "caption": video["narrations"][narration]["text"] if narration >= 0 else "",
                "start": None if reasons else min(starts), "end": None if reasons else max(starts) + clips.fmt.seconds,
                "error": reasons[0] if reasons else None,
                **{name: float(mean[row]) if np.isfinite(mean[row]) else None for name, mean in means.items()},
            }
        )  # fmt: skip
    return table


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m recipes.score", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--checkpoint", type=Path, required=True, help="a run's folder, or one of its checkpoints")
    p.add_argument("--out", type=Path, required=True, help="the Parquet file to write")
    p.add_argument("--data", help="manifest or folder to score; default: what the run was trained on")
    p.add_argument("--split", help="score the rows of this split (without --data: train or test)")
    p.add_argument("--iterations", type=int, default=0, help="steps of further optimisation on the data first")
    p.add_argument("--batch-size", type=int, default=64, help="clips measured together (default: %(default)s)")
    p.add_argument("--draws", type=int, default=1, help="measure each clip so often, among other mates each time")
    p.add_argument("--windows", type=int, default=1, help="of each clip, spread over its narration, to average over")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--attribution", choices=["activation", "loss", "anchor"], default=Reading.attribution)
    p.add_argument("--space", choices=["parameters", "features"], default=Reading.space)
    p.add_argument("--wrt", default=Reading.wrt, help="regular expression on parameter names (default: %(default)s)")
    p.add_argument("--chunk-size", type=int, help="clips encoded at a time, where memory is short")
    p.add_argument("--keep", type=float, metavar="SHARE", help="also write a manifest of this share, the best")
    p.add_argument("--keep-by", choices=[n for n in FIGURES if not n.startswith("norm")], default="cosine")
    add_options(p, batch_size=False)
    options = p.parse_args(arguments)
    for name, low in (("iterations", 0), ("batch_size", 2), ("draws", 1), ("windows", 1)):
        if getattr(options, name) < low:
            p.error(f"--{name.replace('_', '-')} must be at least {low}")
    if options.keep is not None and not 0 < options.keep <= 1:
        p.error("--keep must be more than 0 and at most 1")
    reading = Reading(options.attribution, options.space, options.wrt, options.chunk_size)
    how = Options(options.iterations, options.batch_size, options.draws, options.windows, options.seed)
    data_overrides = overrides_of(options, batch_size=False)  # --batch-size is of the measurement
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with joined(timedelta(days=30)) as group:  # one may wait for another to tune or to finish
            where = options.device, data_overrides
            out = score(options.checkpoint, options.out, options.data, options.split, reading, how, group, *where)
            if group.first:
                report(out, options)
    except (ConfigError, DataError, OSError, ValueError, WorkerError, re.error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def report(out: Path, options: argparse.Namespace) -> None:
    """Say what was found, and write the manifest of what is to be kept."""
    number = scored = unreadable = 0
    total = negative = 0.0
    for piece in columns(out, ["cosine", "error"]):
        cosine = piece["cosine"][np.isfinite(piece["cosine"])]
        number, scored, total = number + len(piece["cosine"]), scored + len(cosine), total + float(cosine.sum())
        negative += int((cosine < 0).sum())
        unreadable += int(np.not_equal(piece["error"], None).sum())
    print(f"{out}: {number} clips, {scored} with a cosine, {unreadable} not readable", end="")
    print(f"; mean {total / scored:+.4f}, {100 * negative / scored:.1f}% negative" if scored else "")
    if options.keep is not None:
        folder = checkpoint.latest(options.checkpoint)
        config = load_config(folder)
        index = indexed(config, options.data, options.split)
        test = own_data(config).test if options.data is None else held_out(options.data, config.data.test is None)
        manifest = out.with_suffix(".kept.jsonl")
        counts = filtered_manifest(out, index, options.keep, options.keep_by, manifest, test)
        print(
            f"{manifest}: {counts['kept']} of {counts['clips']} clips, {counts['kept_videos']} of {counts['videos']} "
            f"videos, and {counts['held_out']} rows to test on as before; train on them with data.manifest={manifest}"
        )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main())
