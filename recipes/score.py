"""Score a data set: one row per clip, with the cosine of its two gradients and plainer figures beside it.

python -m recipes.score checkpoint=runs/demo out=scores.parquet [data=MANIFEST iterations=200]
python -m recipes.score ... keep=0.95            also writes scores.kept.jsonl, a manifest for recipes.pretrain
torchrun --nproc-per-node 2 -m recipes.score ... several processes

Killed at any moment, the same command goes on where it stopped; the table is the same in the end, and the same for any
number of processes.
"""

import logging
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset

from recipes import cli
from recipes.data.clips import Clip, NarratedClips
from recipes.data.index import load_index
from recipes.data.skipped import Skipped
from recipes.data.workers import Loader
from recipes.errors import ConfigError
from recipes.evaluation.parts import Parts, inputs
from recipes.files import check_place
from recipes.keys import key
from recipes.model.build import check_wrt, device_of, use_cores
from recipes.progress import progress_bar
from recipes.restore import Restored, RestoreKeys, own_data, restore_with
from recipes.scoring.keep import write_kept
from recipes.scoring.measure import FIGURES, Reading, measure
from recipes.scoring.order import shuffled
from recipes.scoring.table import SCHEMA, columns, facts_of
from recipes.scoring.tune import tune
from recipes.splits import held_out
from recipes.training.processes import ALONE, Processes, joined

log = logging.getLogger(__name__)

POOL = 4  # batches that are in memory at a time, and one part of the table
PLACES = ("checkpoint", "device", "workers", "out", "keep", "keep_by")  # keys that do not change the table


@dataclass
class ScoreKeys(Reading, RestoreKeys):
    """What to score, and how."""

    out: Path = key(meaning="the Parquet file to write")
    data: str | None = key(None, "manifest or folder to score; null: what the run was trained on")
    split: str | None = key(None, "score the rows of this split; without data=, train or test")
    iterations: int = key(0, "steps of further optimisation on the data first", least=0)
    batch_size: int = key(64, "clips measured together, each against the others", least=2)
    draws: int = key(1, "how often each clip is measured, among other mates each time; figures are means", least=1)
    windows: int = key(1, "windows of each clip, spread over its narration; figures are means", least=1)
    seed: int = key(0, "of the mates, and of the further optimisation", least=0)
    keep: float | None = key(None, "also write a manifest of this share of the clips, the best", more_than=0, most=1)
    keep_by: Literal["cosine", "loss_va", "loss_vt", "similarity_va", "similarity_vt"] = key(
        "cosine", "the figure by which clips are kept"
    )

    def problems(self) -> Iterator[str]:
        """A pattern that none can match, and a split that no run has."""
        try:
            re.compile(self.wrt or "")
        except re.error as error:
            yield f"wrt={self.wrt} is not a regular expression: {error}"
        if self.data is None and self.split not in (None, "train", "test"):
            yield f"split={self.split}: without data= it is train or test"


class Job(NamedTuple):
    """The model, the clips, and the parts of the table: pools of clips that are read together."""

    restored: Restored
    clips: NarratedClips
    parts: Parts


def prepare(keys: ScoreKeys) -> Job:
    """Load the checkpoint and the lists of the data; a ValueError if `out` or its parts hold another scoring."""
    check_place(keys.out)
    restored = restore_with(keys)
    folder, config, tokenizer, modules = restored
    if config.clip.inputs != "raw":
        raise ConfigError(f"{folder}: was trained on features (clip.inputs); only clips of raw media can be scored")
    index = indexed(keys, restored)
    if keys.space == "parameters":
        check_wrt(keys.wrt, modules["model"], "wrt")
    data = {"data": keys.data or "the run's training data", "split": keys.split or ""}
    how = {name: value for name, value in asdict(keys).items() if name not in PLACES}
    facts = inputs(folder, modules, index) | how | data
    if keys.out.exists() and facts_of(keys.out) != facts:
        raise ValueError(f"{keys.out} holds another scoring: remove it, or choose another out=")
    clips = NarratedClips(index, tokenizer, config.clip, keys.windows)
    return Job(restored, clips, Parts(keys.out, SCHEMA, facts, cut(len(clips), POOL * keys.batch_size)))


def indexed(keys: ScoreKeys, restored: Restored) -> Dataset:
    """The rows to score."""
    if keys.data is not None:
        return load_index(keys.data, keys.split)
    splits = own_data(restored.config)
    return splits.test if keys.split == "test" else splits.train


def cut(number: int, size: int) -> list[range]:
    """Positions 0 to ``number`` in pools of ``size`` or more: none is so small that a clip has few mates."""
    pools = max(number // size, 1)
    return [range(p * number // pools, (p + 1) * number // pools) for p in range(pools)]


def plan(keys: ScoreKeys) -> str:
    """What would be measured, and what is done already."""
    restored, clips, parts = prepare(keys)
    pools = parts.blocks
    where = f"the parameters {keys.wrt or 'of the whole model'}" if keys.space == "parameters" else "features"
    lines = [
        f"{len(clips)} clips of {parts.facts['data']}, in {len(pools)} pool(s) of {len(pools[0])} or more",
        f"figures: {', '.join(FIGURES)}; gradients over {where}, {keys.attribution} attribution",
        f"each clip: {keys.draws} draw(s) of mates x {keys.windows} window(s), in batches of {keys.batch_size} or more",
        f"model: {restored.folder}, {keys.iterations} further iterations first",
    ]
    if keys.out.exists():
        lines.append(f"{keys.out} is complete already: nothing is measured")
    elif parts.folder.exists():
        lines.append(f"it goes on: {len(pools) - len(parts.missing())} of {len(pools)} pools are scored already")
    if keys.keep is not None:
        lines.append(f"then the best {keys.keep:.0%} by {keys.keep_by} go to {keys.out.with_suffix('.kept.jsonl')}")
    return "\n".join(lines)


def run(keys: ScoreKeys) -> None:
    """Score, report, and write the manifest of what is to be kept."""
    with joined(timedelta(days=30)) as group:  # one may wait for another to tune or to finish
        job = prepare(keys)
        score(keys, job, group)
        if group.first:
            report(keys, job)


def score(keys: ScoreKeys, job: Job, group: Processes = ALONE) -> None:
    """Write the table of scores; go on with one that was begun.

    Memory holds `POOL` batches of clips and their windows, whatever the size of the data set. Under torchrun, processes
    share the parts of the table among them.
    """
    if keys.out.exists():
        log.info("%s is complete already", keys.out)
        return
    (_, config, tokenizer, modules), clips, parts = job
    modules.to(device_of(config.train))
    use_cores(config.train, config.data)
    with group.first_ahead():  # it makes the folder, and tunes; the others load what it made
        parts.begin()
        if keys.iterations:
            tuned = parts.folder / "tuned.safetensors"
            tune(modules, config, clips.index, tokenizer, keys.iterations, keys.batch_size, keys.seed, tuned)
    modules.eval().requires_grad_(False)

    missing = {number: pool for number, pool in parts.missing().items() if number % group.world == group.rank}
    total = sum(map(len, parts.blocks[group.rank :: group.world]))
    if done := total - sum(map(len, missing.values())):
        log.info("going on: %d of %d clips are scored already", done, len(clips))
    with progress_bar(total=total, initial=done, desc="scoring", unit="clip", disable=not group.first) as bar:
        for number, pool in zip(missing, read_pools(keys, job, list(missing)), strict=True):
            parts.write(number, pa.Table.from_pylist(measured_rows(keys, job, number, pool), schema=SCHEMA))
            bar.update(len(pool))
    group.wait()
    if group.first:
        parts.join()
        parts.remove()
    group.wait()


Pool = list[tuple[int, list[Clip | Skipped]]]
"""Clips by their number, each with its windows."""


def read_pools(keys: ScoreKeys, job: Job, numbers: list[int]) -> Iterator[Pool]:
    """Read pools of clips, which are drawn from the whole data set at random, each with its windows."""
    _, clips, parts = job
    data, size, windows = job.restored.config.data, keys.batch_size, range(keys.windows)

    def drawn(number: int) -> list[int]:  # anew each time: the clips of all pools are too many to keep
        return shuffled(np.array(parts.blocks[number]), len(clips), keys.seed).tolist()

    batches = (pool[i : i + size] for pool in map(drawn, numbers) for i in range(0, len(pool), size))
    requests = ([(clip, window) for clip in batch for window in windows] for batch in batches)
    loader = Loader(clips, requests, list, data.workers, data.timeout, data.prefetch_gib)
    items = (item for batch in loader for item in batch)
    for number in numbers:
        yield [(clip, [next(items) for _ in windows]) for clip in drawn(number)]


def measured_rows(keys: ScoreKeys, job: Job, number: int, pool: Pool) -> list[dict[str, Any]]:
    """Measure a pool, and make its rows of the table, in the pool's order."""
    rounds = [(window, draw) for window in range(keys.windows) for draw in range(keys.draws)]
    figures = {name: np.full((len(rounds), len(pool)), np.nan) for name in FIGURES}
    for i, (window, draw) in enumerate(rounds):
        readable = [(row, seen[window]) for row, (_, seen) in enumerate(pool) if isinstance(seen[window], Clip)]
        order = np.random.default_rng([keys.seed, number, window, draw]).permutation(len(readable))
        batches = np.array_split(order, max(len(readable) // keys.batch_size, 1)) if len(readable) > 1 else []
        for mates in batches:
            result = measure(job.restored.modules, [readable[m][1] for m in mates], keys)
            for name, column in result.items():
                figures[name][i, [readable[m][0] for m in mates]] = column
    means = {name: by_round.mean(0) for name, by_round in figures.items()}
    return [
        described(job.clips, clip, seen) | {name: _number(mean[row]) for name, mean in means.items()}
        for row, (clip, seen) in enumerate(pool)
    ]


def described(clips: NarratedClips, clip: int, seen: list[Clip | Skipped]) -> dict[str, Any]:
    """What a row of the table says of a clip beside its figures."""
    starts = [item.start for item in seen if isinstance(item, Clip)]
    reason = next((item.reason for item in seen if isinstance(item, Skipped)), None)
    return clips.about(clip) | {
        "start": None if reason else min(starts),
        "end": None if reason else max(starts) + clips.fmt.seconds,
        "error": reason,
    }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def report(keys: ScoreKeys, job: Job) -> None:
    """Sum the table up, and write the manifest of what is to be kept."""
    cosines, number, unreadable = [], 0, 0
    for piece in columns(keys.out, ["cosine", "error"]):
        cosines.append(piece["cosine"][np.isfinite(piece["cosine"])])
        number, unreadable = number + len(piece["cosine"]), unreadable + int(np.not_equal(piece["error"], None).sum())
    cosine = np.concatenate([np.empty(0), *cosines])
    found = f"; mean {cosine.mean():+.4f}, {100 * (cosine < 0).mean():.1f}% negative" if len(cosine) else ""
    print(f"{keys.out}: {number} clips, {len(cosine)} with a cosine, {unreadable} not readable{found}")
    if keys.keep is None:
        return
    config, manifest = job.restored.config, keys.out.with_suffix(".kept.jsonl")
    test = own_data(config).test if keys.data is None else held_out(keys.data, config.data.test is None)
    counts = write_kept(keys.out, job.clips.index, keys.keep, keys.keep_by, manifest, test)
    print(
        f"{manifest}: {counts['kept']} of {counts['clips']} clips, {counts['kept_videos']} of {counts['videos']} "
        f"videos, and {counts['held_out']} rows to test on as before; train on them with data.manifest={manifest}"
    )


COMMAND = cli.Command("recipes.score", __doc__, ScoreKeys, run, plan)
main = COMMAND.main

if __name__ == "__main__":
    cli.exit(main)
