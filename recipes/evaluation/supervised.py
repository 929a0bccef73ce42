"""What fine-tuning and tagging share: a classifier is trained and tested on each split of a labelled data set."""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from recipes.config import Config
from recipes.data.clips import Skipped
from recipes.data.labels import Labelled, Split, load_labelled
from recipes.data.windows import RandomWindows, WindowedClips
from recipes.errors import ConfigError
from recipes.evaluation import leakage, results, tuning_config
from recipes.evaluation.classifier import Classifier
from recipes.evaluation.disjoint import check_disjoint
from recipes.evaluation.results import Result
from recipes.evaluation.tuning import Loss, predict, tune
from recipes.evaluation.tuning_config import TuneConfig
from recipes.files import folders, locks
from recipes.model.build import device_of, use_cores
from recipes.model.positions import fit_positions
from recipes.model.vatt import VATT
from recipes.restore import overrides_of, restore

Figures = dict[str, Any]


class Task(NamedTuple):
    """One of the two tasks.

    Attributes:
        name: Of the task.
        modality: "video" or "audio".
        defaults: Of its training.
        check: Raises a ConfigError where labels or configuration are not for it.
        loss: Of a configuration.
        score: Figures of logits (N, C) and the class numbers of the N clips; plain values.
        columns: Of the table: what a figure is called there, how it is written, and its key.
        notes: What else is to be said under the table, of the data and {split: figures}.
    """

    name: str
    modality: str
    defaults: TuneConfig
    check: Callable[[Labelled, TuneConfig], None]
    loss: Callable[[TuneConfig], Loss]
    score: Callable[[Tensor, list[list[int]]], Figures]
    columns: tuple[tuple[str, Callable[[Any], str], str], ...]
    notes: Callable[[Labelled, dict[str, Figures]], str] = lambda data, figures: ""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of both tasks."""
    parser.add_argument("--dir", type=Path, help="folder to work in; default: one beside the checkpoint's run")
    parser.add_argument("--resume", action="store_true", help="go on where the work in that folder stopped")
    parser.add_argument("--split", help="name of the only split to use; default: all, one after the other")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="steps=100, clip.size=320; see recipes/evaluation/tuning_config.py",
    )


def run(options: argparse.Namespace, task: Task) -> Result:
    """Train and test a classifier on each split.

    Raises:
        ConfigError, OSError, ValueError: The checkpoint, the data or the configuration cannot be used.
        SystemExit: Interrupted; it can be resumed.
    """
    if options.data is None:
        raise ConfigError(f"{task.name} needs --data, a labelled data set: see docs/evaluation.md")
    folder, trained, _, modules = restore(options.checkpoint, device=options.device, overrides=overrides_of(options))
    overrides = [f"workers={options.workers}"] * (options.workers is not None)
    overrides += [f"batch_size={options.batch_size}"] * (options.batch_size is not None)
    config = tuning_config.load(task.defaults, trained, [*overrides, *options.overrides])
    data = load_labelled(options.data)
    task.check(data, config)
    splits = chosen(data, options.split)
    tested = data.index.select(sorted({row for split in splits for row in split.test}))
    leaks = leakage.check(folder, tested, allow=options.allow_leakage)
    place = options.dir or Path(trained.run.dir) / f"{trained.run.name}-{task.name}"
    use_cores(trained)
    figures: dict[str, Figures] = {}
    skipped: list[Skipped] = []
    with locks.hold(place):
        if not options.resume:
            folders.make(place, "split-*")
        for split in splits:
            model = restore(folder).modules["model"] if figures else modules["model"]
            figures[split.name], unread = on_split(task, model, trained, config, data, split, place, options.resume)
            skipped += unread
    if len(splits) > 1:
        figures["mean"] = mean(list(figures.values()))
    result = Result(
        task=task.name,
        checkpoint=folder,
        data=name_of(data) or str(options.data),
        protocol=asdict(config),
        counts={
            "train": sum(len(split.train) for split in splits), "test": sum(len(split.test) for split in splits),
            "skipped": len(skipped), "classes": len(data.names),
        },
        leakage=leaks,
        figures=figures,
        table=table(task, f"{options.checkpoint}{leaks.mark}", data, figures),
        skipped=skipped,
    )  # fmt: skip
    results.write(result, place / "result.json")
    return result


def chosen(data: Labelled, name: str | None) -> list[Split]:
    """The splits to use; refused where what is trained on and what is tested on share a video."""
    splits = [split for split in data.splits if name in (None, split.name)]
    if not splits:
        there = ", ".join(split.name for split in data.splits)
        raise ConfigError(f"--split {name}: there is no such split; there are: {there}")
    for split in splits:
        check_disjoint(data, split)
    return splits


def on_split(
    task: Task, model: VATT, trained: Config, config: TuneConfig, data: Labelled, split: Split, place: Path,
    resume: bool,
) -> tuple[Figures, list[Skipped]]:  # fmt: skip
    """Train on one part of a split and test on the other: the figures, and the test clips that could not be read."""
    folder = place / f"split-{split.name}"
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    fit_positions(model, trained.model, config.clip)
    model.drop_token = config.drop_token
    classifier = Classifier(model, task.modality, len(data.names), config.head_dropout, config.frozen)
    classifier.to(device_of(trained))
    clips = RandomWindows(data.index.select(split.train), config.clip, task.modality, config.seed, config.augment)
    labels = [data.labels[row] for row in split.train]
    if not tune(classifier, clips, labels, task.loss(config), config, folder, resume):
        raise SystemExit(f"interrupted: the same command with --resume --dir {place} goes on")
    test = WindowedClips(data.index, config.clip, task.modality, config.windows, split.test, config.crops)
    predictions = predict(classifier, test, config)
    figures = task.score(predictions.logits, [data.labels[row] for row in predictions.rows])
    return figures | {"clips": len(predictions.rows), "skipped": len(predictions.skipped)}, predictions.skipped


def name_of(data: Labelled) -> str:
    """The data set as people call it: Kinetics by its number of classes; "" of a manifest."""
    return f"Kinetics-{len(data.names)}" if data.dataset == "Kinetics" else data.dataset


def table(task: Task, model: str, data: Labelled, figures: dict[str, Figures]) -> str:
    """Markdown table of {split: figures}, beside what others report on the data, and the task's notes."""

    def row(name: str, split: str, of: Figures) -> dict[str, str]:
        written = {column: write(of[key]) for column, write, key in task.columns if key in of}
        return {"model": name, "split": split, **written}

    rows = [row(model, split, of) for split, of in figures.items()]
    rows += [row(paper.cited, "", paper.figures) for paper in results.reported(task.name, name_of(data))]
    return "\n\n".join(filter(None, [results.markdown(rows), task.notes(data, figures)]))


def percent(share: float) -> str:
    """A share as per cent."""
    return f"{100 * share:.1f}"


def mean(figures: list[Figures]) -> Figures:
    """The mean of those figures that are numbers."""
    return {
        name: float(np.mean([of_split[name] for of_split in figures]))
        for name, value in figures[0].items()
        if isinstance(value, float)
    }
