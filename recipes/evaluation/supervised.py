"""What fine-tuning and tagging share: a classifier is trained and tested on each split of a labelled data set."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from recipes import keys as typed_keys
from recipes.data.labels import Labelled, Split
from recipes.data.skipped import Skipped
from recipes.data.windows import RandomWindows, WindowedClips
from recipes.evaluation import labelled, results
from recipes.evaluation.classifier import Encoder, Loss, classifier
from recipes.evaluation.labelled import Job, LabelledKeys
from recipes.evaluation.results import Figures, Result
from recipes.evaluation.tuning import Training, Tuning, predict, tune
from recipes.files import folders, locks
from recipes.keys import key
from recipes.model.build import device_of
from recipes.model.positions import fit_positions
from recipes.restore import Restored, load_config, restore_with
from recipes.training import checkpoint


@dataclass
class TuningKeys(Tuning, LabelledKeys):
    """What to train and test a classifier on, and how."""

    dir: Path | None = key(None, "folder to work in; null: one beside the checkpoint's run")


class Task(NamedTuple):
    """One of the two tasks."""

    name: str
    modality: str  # "video" or "audio"
    single: bool  # whether every clip must have exactly one label
    loss: Callable[[TuningKeys], Loss]
    score: Callable[[Tensor, list[list[int]]], Figures]  # of logits (N, C) and the class numbers of the N clips
    columns: tuple[tuple[str, Callable[[Any], str], str], ...]  # of the table: name, what writes the figure, its key
    notes: Callable[[Labelled, dict[str, Figures]], str] = lambda data, figures: ""  # text below the table


def complete(keys: TuningKeys) -> TuningKeys:
    """The keys with the clips and the augmentation of the checkpoint."""
    trained = load_config(checkpoint.latest(keys.checkpoint), keys.device)
    return replace(keys, clip=trained.clip, augment=trained.augment)


def prepare(task: Task, keys: TuningKeys) -> tuple[Job, Path]:
    """See `labelled.prepare`; refuses also clips that the model cannot take. Returns also the folder to work in."""
    job = labelled.prepare(keys, task.name, task.single)
    config = job.restored.config
    typed_keys.check(replace(config, clip=keys.clip, augment=keys.augment))
    return job, keys.dir or Path(config.run.dir) / f"{config.run.name}-{task.name}"


def plan(task: Task, keys: TuningKeys) -> str:
    """What would be trained and tested, and where; an OSError if that folder holds something else."""
    job, folder = prepare(task, keys)
    folders.check(folder, "split-*")
    parts = "a linear head" if keys.frozen else f"the {task.modality} path and a linear head"
    work = f"would train {parts} for {keys.steps} steps of {keys.batch_size} clips in {folder}"
    return job.plan(f"{work} and test each clip in {keys.windows} window(s) and {keys.crops} crop(s)")


def run(task: Task, keys: TuningKeys, resume: bool = False) -> Result:
    """Train and test a classifier on each split; on ``resume``, go on where the work in its folder stopped."""
    job, folder = prepare(task, keys)
    figures: dict[str, Figures] = {}
    skipped: list[Skipped] = []
    with locks.hold(folder):
        if not resume:
            folders.make(folder, "split-*")
        for split in job.splits:
            restored = restore_with(keys) if figures else job.restored  # every split begins with the checkpoint
            place = folder / f"split-{split.name}"
            figures[split.name], unread = on_split(task, keys, restored, job.data, split, place, resume)
            skipped += unread
    if len(job.splits) > 1:
        figures["mean"] = mean(list(figures.values()))
    train, test = (sum(len(part) for part in parts) for parts in zip(*(split[1:] for split in job.splits), strict=True))
    result = Result(
        task=task.name,
        checkpoint=job.restored.folder,
        data=job.name or keys.data,
        protocol=keys.protocol(),
        counts={"train": train, "test": test, "skipped": len(skipped), "classes": len(job.data.names)},
        leakage=job.leakage,
        figures=figures,
        table=table(task, f"{keys.checkpoint}{job.leakage.mark}", job, figures),
        skipped=skipped,
    )
    result.write(folder / "result.json")
    return result


def on_split(
    task: Task, keys: TuningKeys, restored: Restored, data: Labelled, split: Split, folder: Path, resume: bool
) -> tuple[Figures, list[Skipped]]:
    """Train on one part of a split and test on the other: the figures, and the test clips that could not be read."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(keys.seed)
    model, config = restored.modules["model"], restored.config
    fit_positions(model, config.model, keys.clip)
    model.drop_token = keys.drop_token
    encoder = Encoder(model, task.modality, keys.frozen)
    modules = classifier(encoder, len(data.names), keys.head_dropout, task.loss(keys)).to(device_of(config.train))
    clips = RandomWindows(data.index.select(split.train), keys.clip, task.modality, keys.seed, keys.augment)
    reading = replace(config.data, timeout=keys.timeout)
    training = Training(modules, clips, [data.labels[row] for row in split.train], keys, folder)
    if resume:
        training.load()
    tune(training, reading)
    test = WindowedClips(data.index, keys.clip, task.modality, keys.windows, split.test, keys.crops)
    predictions = predict(modules, test, keys, reading)
    figures = task.score(predictions.values, [data.labels[row] for row in predictions.rows])
    return figures | {"clips": len(predictions.rows), "skipped": len(predictions.skipped)}, predictions.skipped


def table(task: Task, model: str, job: Job, figures: dict[str, Figures]) -> str:
    """Markdown table of {split: figures}, beside what others report on the data, and the task's notes."""
    judged = [(model, split, values) for split, values in figures.items()]
    judged += [(paper.cited, "", paper.figures) for paper in results.reported(task.name, job.name)]
    rows = []
    for name, split, values in judged:
        written = {column: write(values[figure]) for column, write, figure in task.columns if figure in values}
        rows.append({"model": name, "split": split, **written})
    return "\n\n".join(filter(None, [results.markdown(rows), task.notes(job.data, figures)]))


def mean(figures: list[Figures]) -> Figures:
    """The mean of those figures that are numbers."""
    return {
        name: float(np.mean([values[name] for values in figures]))
        for name, value in figures[0].items()
        if isinstance(value, float)
    }
