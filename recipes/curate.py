"""Weigh every pair of a data set by what filters have learnt from a few trusted clips.

python -m recipes.curate --config recipes/configs/demo.yaml curate.trusted=trusted.jsonl curate.out=runs/curated
torchrun --nproc-per-node 2 -m recipes.curate ...   several processes

The configuration is that of the training that is to come: its model, clips and losses are the filters', too. It writes
scores.parquet (scores and weights of all pairs), manifest.jsonl (to train on, see docs/curation.md), report.md and
report.json. Killed at any moment, the same command goes on where it stopped.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from torch import nn

from recipes import cli
from recipes.config import Config
from recipes.curation import table, verdict
from recipes.curation.filters import (
    CurateKeys,
    Trusted,
    filter_config,
    group_of,
    halves,
    manifest_of,
    names_of,
    write_manifest,
)
from recipes.curation.judging import SPACES, Bank, Embeddings, embed_all, held_out_scores
from recipes.curation.table import BATCH, SCORES
from recipes.curation.verdict import Verdict
from recipes.curation.weighed import Labels, Weights, write_weighed
from recipes.data import storage, vocabulary
from recipes.data.clips import NarratedClips
from recipes.data.index import captions, load_index
from recipes.errors import ConfigError, DataError
from recipes.evaluation.parts import Parts, inputs
from recipes.files import check_place, digest, write_atomically
from recipes.keys import as_dict, flat, section
from recipes.model.build import device_of, use_cores
from recipes.pretrain import pretrain
from recipes.restore import restore
from recipes.scoring.table import columns as columns_of
from recipes.splits import train_and_test
from recipes.training import checkpoint
from recipes.training.processes import ALONE, Processes, joined
from recipes.training.start import is_trained

log = logging.getLogger(__name__)

WORDS, TABLE, MANIFEST = "vocabulary.json", "scores.parquet", "manifest.jsonl"
REPORT, FACTS = "report", "facts.json"
PLACES = ("train.device", "data.workers", "data.timeout", "data.prefetch_gib")  # keys that do not change the filters


@dataclass
class CurateConfig(Config):
    """A run that is to come, and what is trusted."""

    curate: CurateKeys = section(CurateKeys)

    def problems(self) -> Iterator[str]:
        """What does not fit together."""
        yield from super().problems()
        if self.data.sources:
            yield "data.sources: curate one manifest at a time, then mix what comes of it"


@dataclass(frozen=True)
class Job:
    """What is curated."""

    config: CurateConfig
    data: Dataset  # rows to weigh
    test: Dataset  # rows that are held out
    trusted: Trusted

    def left_out(self, number: int) -> np.ndarray:
        """Which rows of the data the filters of a round do not learn from, bool (filters, rows): in the first, all."""
        filters = self.config.curate.filters
        if not number:
            return np.ones((filters, len(self.data)), bool)
        groups = [group_of(row) for row in self.data.select_columns(["group", "video"])]
        return halves(groups, filters, self.config.train.seed)


@dataclass(frozen=True)
class Round:
    """What the filters of one round say."""

    scores: Path  # the table
    verdicts: dict[str, Verdict]
    others: dict[str, dict[str, np.ndarray]]  # held-out scores of other kinds of wrong pairs
    readable: np.ndarray  # which clips could be read

    @property
    def auroc(self) -> float:
        """How well the filters tell held-out pairs apart, over both pairs of modalities."""
        return float(np.nanmean([verdict.auroc for verdict in self.verdicts.values()]))

    def weights(self) -> Weights:
        """Weights of the pairs."""
        return Weights({space: verdict.weights() for space, verdict in self.verdicts.items()}, self.readable)


def prepare(config: CurateConfig) -> Job:
    """Read the lists of clips; a DataError where they do not fit together."""
    keys = config.curate
    check_place(keys.out / TABLE)
    try:
        splits, index = train_and_test(config), load_index(keys.trusted)
    except (ValueError, OSError) as error:
        raise DataError(str(error)) from error
    held_out = {storage.same(video) for video in splits.test["video"]}
    if tested := [row["id"] for row in index if storage.same(row["video"]) in held_out]:
        raise DataError(f"{len(tested)} trusted clip(s) are of videos to be tested on, for example {tested[0]}")
    job = Job(config, splits.train, splits.test, Trusted.of(index, keys.filters, config.train.seed))
    check_begun(job)
    return job


def check_begun(job: Job) -> None:
    """Raise a ConfigError if the folder holds the curation of something else."""
    place = job.config.curate.out / FACTS
    if place.exists():
        begun, facts = json.loads(place.read_text(encoding="utf-8")), facts_of(job)
        changed = sorted(name for name in begun.keys() | facts.keys() if begun.get(name) != facts.get(name))
        if changed:
            raise ConfigError(
                f"curate.out={place.parent} holds another curation ({', '.join(changed)} differ): remove it, or choose "
                "another"
            )


def facts_of(job: Job) -> dict[str, Any]:
    """What a curation is of, and by what."""
    keys = job.config.curate
    config = filter_config(job.config, keys, Path(), 0, Path())
    facts = {f"configuration.{name}": value for name, value in flat(as_dict(config)).items() if name not in PLACES}
    for name, index in (("clips", job.data), ("held out", job.test), ("trusted", job.trusted.index)):
        facts[name] = digest(repr(row).encode() for row in index)[:16]
    return json.loads(
        json.dumps(facts | {name: getattr(keys, name) for name in ("filters", "rounds", "bank", "draws")}, default=str)
    )


def plan(config: CurateConfig) -> str:
    """What would be trained and judged."""
    job, keys = prepare(config), config.curate
    done = [number for number in range(keys.rounds) if (keys.out / f"round-{number}" / TABLE).exists()]
    lines = [
        f"{len(job.data)} videos of {config.data_name} to weigh, {len(job.test)} held out",
        f"{len(job.trusted.index)} trusted clips of {len(set(job.trusted.groups))} recordings",
        f"up to {keys.rounds} round(s) of {keys.filters} filters, {keys.steps} steps each",
        f"written to {keys.out}: {TABLE}, {MANIFEST}, {REPORT}.md",
    ]
    return "\n".join(lines + [f"it goes on: {len(done)} round(s) are done"] * bool(done))


def run(config: CurateConfig) -> None:
    """Curate, alone or as one of the processes that torchrun started."""
    with joined(timedelta(days=30)) as group:
        curate(config, group)


def curate(config: CurateConfig, group: Processes = ALONE) -> None:
    """Train filters and judge all pairs, in rounds while they tell held-out pairs apart better; write the best."""
    with group.first_ahead():
        job = prepare(config)
        if group.first:
            config.curate.out.mkdir(parents=True, exist_ok=True)
            write_atomically(config.curate.out / FACTS, json.dumps(facts_of(job), indent=1))
    if group.decide((config.curate.out / MANIFEST).exists):  # it is written last
        log.info("%s is complete already", config.curate.out)
        return
    best: Round | None = None
    for number in range(config.curate.rounds):
        train_filters(job, number, best, group)
        result = judge(job, number, group)
        log.info("round %d: filters tell held-out pairs apart with AUROC %.3f", number + 1, result.auroc)
        if best is not None and not group.decide(partial(better, result, best)):
            break
        best = result
    if group.first and best is not None:
        write(job, best)
    group.wait()


def better(result: Round, best: Round) -> bool:
    """Whether the filters of a round tell held-out pairs apart better than those of the best one before."""
    return result.auroc > best.auroc


def train_filters(job: Job, number: int, before: Round | None, group: Processes) -> None:
    """Train the filters of a round that are not trained yet: later ones learn from the weighed data, too."""
    config, keys = job.config, job.config.curate
    folder, words = keys.out / f"round-{number}", keys.out / WORDS
    left_out = job.left_out(number)
    for f in range(keys.filters):
        run_config = filter_config(config, keys, folder, f, words)
        if group.first and not manifest_of(folder, f).exists():
            if not words.exists():
                vocabulary.save(vocabulary.build(all_captions(job), config.data.vocabulary), words)
            held = job.trusted.recordings(f)
            labels, seconds = Labels(job.trusted.index), config.clip.seconds
            weighed = () if before is None else before.weights().clips(job.data, labels, seconds)
            rows = (row for n, row in weighed if not left_out[f, n] and held.isdisjoint(names_of(row)))
            write_manifest(manifest_of(folder, f), job.trusted, f, rows)
        group.wait()
        if not is_trained(run_config):
            log.info("round %d, filter %d of %d", number + 1, f + 1, keys.filters)
            pretrain(run_config, (run_config.folder / checkpoint.CONFIG).exists(), group)
    group.wait()


def all_captions(job: Job) -> Iterator[str]:
    """All texts that the filters read."""
    yield from captions(job.trusted.index)
    yield from captions(job.data)


def judge(job: Job, number: int, group: Processes) -> Round:
    """Score all pairs of the data by the filters of a round, and find out what the scores mean."""
    config, keys = job.config, job.config.curate
    folder = keys.out / f"round-{number}"
    filters, tokenizer = load_filters(job, folder)
    use_cores(config.train, config.data)
    data, trusted = (NarratedClips(index, tokenizer, config.clip) for index in (job.data, job.trusted.index))
    rng = np.random.default_rng(config.train.seed)
    others = np.sort(rng.permutation(len(data))[: keys.bank]).tolist()
    bank = Bank.of(embed_all(filters, data, others, BATCH, config.data), config.objective.temperature)
    left_out = job.left_out(number)
    weights = inputs(checkpoint.latest(folder / "filter-0"), nn.ModuleList(filters), job.data)
    parts = Parts(folder / TABLE, SCORES, weights, table.blocks(len(data)))
    if not group.decide((folder / TABLE).exists):
        table.score(filters, data, bank, left_out, parts, config.data, group)
    embedded = embed_all(filters, trusted, range(len(trusted)), BATCH, config.data)
    return verdicts_of(job, bank, embedded, folder / TABLE, int(left_out.sum(0).max()))


def load_filters(job: Job, folder: Path) -> tuple[list[nn.ModuleDict], Any]:
    """The filters of a round, on the device, frozen; and their vocabulary."""
    device = device_of(job.config.train)
    restored = [restore(folder / f"filter-{f}") for f in range(job.config.curate.filters)]
    return [each.modules.to(device).eval().requires_grad_(False) for each in restored], restored[0].tokenizer


def verdicts_of(job: Job, bank: Bank, embedded: Embeddings, scores: Path, judges: int) -> Round:
    """Calibrate the scores of each pair of modalities by held-out trusted clips."""
    keys, index = job.config.curate, job.trusted.index
    groups, folds = np.array(job.trusted.groups)[embedded.clips], job.trusted.folds[embedded.clips]
    names = [f"{figure}_{space}" for figure in ("score", "spread") for space in SPACES]
    names += ["error", "video", "caption"]
    pieces = list(columns_of(scores, names))
    columns = {name: np.concatenate([piece[name] for piece in pieces]) for name in names}
    labels = Labels(index)
    clips = zip(columns["video"], columns["caption"], strict=True)
    unseen = np.array([labels.of({"video": video}, caption) is None for video, caption in clips])
    verdicts, others = {}, {}
    for space in SPACES:
        right = np.array([is_right(index[clip], space) for clip in embedded.clips])
        held_out, others[space] = held_out_scores(bank, embedded, groups, folds, right, space, job.config.train.seed)
        figures = [columns[f"{figure}_{space}"].astype(float) for figure in ("score", "spread")]
        verdicts[space] = Verdict(*figures, unseen, judges, held_out, keys.draws)
    return Round(scores, verdicts, others, np.equal(columns["error"], None))


def is_right(row: dict[str, Any], space: str) -> bool:
    """Whether somebody trusts the sound ("va") or the text ("vt") of a row."""
    weight = row["sound_weight"] if space == "va" else row["narrations"][0]["weight"] if row["narrations"] else None
    return weight is None or weight > 0


def write(job: Job, best: Round) -> None:
    """Report, then write the table with weights, and the manifest."""
    out, weights = job.config.curate.out, best.weights()
    words = "\n\n".join(verdict.as_markdown(space, best.verdicts[space], best.others[space]) for space in SPACES)
    print(words)
    write_atomically(out / f"{REPORT}.md", words + "\n")
    write_atomically(out / f"{REPORT}.json", verdict.as_json(best.verdicts, best.others))
    table.write_table(best.scores, weights.by_space, out / TABLE)
    counts = write_weighed(out / MANIFEST, job.data, weights, job.trusted.index, job.test, job.config.clip.seconds)
    print(
        f"\n{out / MANIFEST}: {counts['clips']} of {len(best.readable)} clips with weights, {counts['trusted']} "
        f"trusted ones besides, {counts['held out']} rows to test on; train on them with data.manifest={out / MANIFEST}"
    )


COMMAND = cli.Command("recipes.curate", __doc__, CurateConfig, run, plan, needs_config=True)
main = COMMAND.main

if __name__ == "__main__":
    cli.exit(main)
