"""A linear probe: the classes of clips from frozen features, on the splits of a labelled data set."""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from recipes.data import storage
from recipes.data.labels import Labelled, Split, load_labelled
from recipes.data.windows import WindowedClips
from recipes.errors import DataError
from recipes.evaluation import leakage
from recipes.evaluation.accuracy import Judged, accuracy
from recipes.evaluation.disjoint import check_disjoint
from recipes.evaluation.frozen import Frozen, frozen_features
from recipes.evaluation.linear import averaged, logistic, vatt_head
from recipes.evaluation.results import Result, markdown, reported
from recipes.model.build import build, device_of, use_cores
from recipes.restore import overrides_of, restore

NAME = "probe"
HELP = "accuracy of linear classifiers on frozen features: UCF101, HMDB51, ESC-50, or a labelled manifest"
MODALITY = {"ESC-50": "audio"}  # of the other data sets: video
CLASSIFIERS = ("logistic", "vatt")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this task."""
    parser.add_argument("--modality", choices=["video", "audio"], help="default: audio for ESC-50, else video")
    parser.add_argument("--split", help="judge this one alone (default: all, and their mean)")
    parser.add_argument("--windows", type=int, default=4, help="of each clip (default: %(default)s)")
    parser.add_argument("--untrained", action="store_true", help="judge the same model before its training, too")


def run(options: argparse.Namespace) -> Result:
    """Probe a checkpoint on the labelled data set that `options.data` names."""
    if options.data is None:
        raise DataError("a probe needs labels: --data names a labelled data set, see docs/evaluation.md")
    if options.windows < 1:
        raise DataError(f"--windows {options.windows}: expected 1 or more")
    data = load_labelled(options.data)
    splits = checked_splits(data, options.split)
    modality = options.modality or MODALITY.get(data.dataset, "video")
    overrides = overrides_of(options)
    folder, config, tokenizer, modules = restore(options.checkpoint, device=options.device, overrides=overrides)
    tested = data.index.select(sorted({row for split in splits for row in split.test}))
    leaks = leakage.check(folder, tested, allow=options.allow_leakage)
    models: dict[str, nn.ModuleDict] = {f"{options.checkpoint}{leaks.mark}": modules}
    if options.untrained:
        torch.manual_seed(config.train.seed)
        models["the same, untrained"] = build(config, tokenizer)
    use_cores(config)
    rows = sorted({row for split in splits for row in (*split.train, *split.test)})
    clips = WindowedClips(data.index, config.clip, modality, options.windows, rows)
    figures = {}
    for name, model in models.items():
        frozen = frozen_features(model.to(device_of(config))["model"], clips, config)
        figures[name] = probe(data, splits, frozen, device_of(config))
    return Result(
        task=NAME,
        checkpoint=folder,
        data=data.dataset or str(options.data),
        protocol={"modality": modality, "windows": options.windows, "features": "before the heads"},
        counts={"clips": len(frozen.rows), "skipped": len(frozen.skipped), "classes": len(data.names)},
        leakage=leaks,
        figures=figures,
        table=table(figures, data.dataset),
        skipped=frozen.skipped,
    )


def checked_splits(data: Labelled, name: str | None) -> list[Split]:
    """The splits to judge: the one of this name, or all.

    Raises:
        DataError: There is no such split, a clip in it has another number of classes than one, or its parts share a
            video.
    """
    splits = [split for split in data.splits if name in (None, split.name)]
    if not splits:
        raise DataError(f"there is no split {name!r}; there are {', '.join(split.name for split in data.splits)}")
    for split in splits:
        for row in (*split.train, *split.test):
            if len(data.labels[row]) != 1:
                raise DataError(
                    f"{data.index[row]['id']}: expected one class for each clip; found {len(data.labels[row])}. Clips "
                    "with several are for the task tagging"
                )
        check_disjoint(data, split)
    return splits


def probe(data: Labelled, splits: Sequence[Split], frozen: Frozen, device: torch.device) -> dict[str, Any]:
    """Train and test the classifiers on every split.

    Args:
        data: The data set; one class for each clip.
        splits: Those to judge.
        frozen: Features of its clips.
        device: To train VATT's head on.

    Returns:
        {name of a split: figures}, and, where there are several, under "mean" those of all.
    """
    place = {row: i for i, row in enumerate(frozen.rows)}
    labels = np.array([data.labels[row][0] for row in frozen.rows])
    groups = np.array([data.sources[row] or storage.same(data.index[row]["video"]) for row in frozen.rows])
    judged: dict[str, list[Judged]] = {name: [] for name in CLASSIFIERS}
    figures: dict[str, Any] = {}
    for split in splits:
        train, test = (np.array([place[row] for row in part if row in place], int) for part in split[1:])
        classes = len(np.unique(labels[train]))
        if classes < 2 or not len(test):
            raise DataError(
                f"split {split.name}: of the clips that could be read, {len(train)} of {classes} class(es) are to "
                f"train on and {len(test)} to test on; two classes and one clip are needed"
            )
        commonest = np.bincount(labels[train]).argmax()
        chance = float((labels[test] == commonest).mean())
        predictions, strength = _predict(frozen, labels, groups, train, test, len(data.names), device)
        for name, predicted in predictions.items():
            judged[name].append(Judged(predicted == labels[test], groups[test]))
        own = {name: accuracy(judged[name][-1:]) for name in CLASSIFIERS}
        figures[split.name] = {"train": len(train), "test": len(test), "chance": chance, "C": strength, **own}
    if len(splits) > 1:
        chance = float(np.mean([of["chance"] for of in figures.values()]))
        figures["mean"] = {"chance": chance, **{name: accuracy(judged[name]) for name in CLASSIFIERS}}
    return figures


def _predict(
    frozen: Frozen, labels: np.ndarray, groups: np.ndarray, train: np.ndarray, test: np.ndarray, classes: int,
    device: torch.device,
) -> tuple[dict[str, np.ndarray], float]:  # fmt: skip
    """Classes of the test clips by each classifier, and the C of the logistic regression."""
    means = frozen.features.mean(1).numpy()
    simple = logistic(means[train], labels[train], groups[train])
    windows = frozen.features.to(device)
    head = vatt_head(windows[train], torch.from_numpy(labels[train]).to(device), classes)
    by_head = averaged(head, windows[test]).argmax(1).cpu().numpy()
    return {"logistic": simple.model.predict(means[test]), "vatt": by_head}, simple.strength


def table(figures: dict[str, dict[str, Any]], data: str) -> str:
    """Markdown table of {model: figures of `probe`}, beside what others report of the data set."""
    rows = [
        {"model": model, "classifier": classifier, "split": split, "top-1": f"{100 * of[classifier]['top1']:.1f}"}
        | {"95% interval": "{:.1f} to {:.1f}".format(*(100 * bound for bound in of[classifier]["interval"]))}
        | {"chance": f"{100 * of['chance']:.1f}", "test clips": str(of.get("test", ""))}
        for model, by_split in figures.items()
        for classifier in CLASSIFIERS
        for split, of in by_split.items()
    ]
    rows += [
        {"model": row.cited, "classifier": "linear", "split": row.part, "top-1": f"{100 * row.figures['top1']:.1f}"}
        for row in reported(NAME, data)
    ]
    return markdown(rows)
