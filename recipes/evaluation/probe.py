"""Judge linear classifiers of frozen features on the splits of a labelled data set: UCF101, HMDB51, ESC-50, ...

python -m recipes.evaluate probe checkpoint=runs/demo data=ucf101 untrained=true
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from recipes.config import DataConfig
from recipes.data import storage
from recipes.data.labels import Labelled, Split
from recipes.data.windows import WindowedClips
from recipes.errors import DataError
from recipes.evaluation import bootstrap, labelled
from recipes.evaluation.embedding import Outputs, outputs
from recipes.evaluation.labelled import LabelledKeys
from recipes.evaluation.linear import averaged, logistic, vatt_head
from recipes.evaluation.results import Result, markdown, percent, reported
from recipes.keys import key
from recipes.model.build import build, device_of
from recipes.model.vatt import VATT
from recipes.restore import EmbeddingKeys

NAME = "probe"
CLASSIFIERS = ("logistic", "vatt")


@dataclass
class Keys(LabelledKeys, EmbeddingKeys):
    """What to probe, and how."""

    modality: Literal["video", "audio"] | None = key(None, "what to look at; null: audio for ESC-50, else video")
    windows: int = key(4, "windows of each clip", least=1, most=1000)
    untrained: bool = key(False, "judge the same model before its training, too")

    def modality_of(self, data: Labelled) -> str:
        """What to look at in a data set."""
        return self.modality or ("audio" if data.dataset == "ESC-50" else "video")


def plan(keys: Keys) -> str:
    """What would be probed."""
    job = labelled.prepare(keys, NAME, single=True)
    return job.plan(f"would be probed: {keys.modality_of(job.data)}, {keys.windows} window(s) of each clip")


def run(keys: Keys) -> Result:
    """Probe a checkpoint on a labelled data set."""
    (folder, config, tokenizer, modules), data, splits, leaks = labelled.prepare(keys, NAME, single=True)
    rows = sorted({row for split in splits for row in (*split.train, *split.test)})
    clips = WindowedClips(data.index, config.clip, keys.modality_of(data), keys.windows, rows)
    models: dict[str, nn.ModuleDict] = {f"{keys.checkpoint}{leaks.mark}": modules}
    if keys.untrained:
        torch.manual_seed(config.train.seed)
        models["the same, untrained"] = build(config, tokenizer).to(device_of(config.train))
    figures = {}
    for name, trained in models.items():
        frozen = features(trained["model"], clips, config.evaluate.batch_size, config.data)
        figures[name] = probe(data, splits, frozen, device_of(config.train))
    return Result(
        task=NAME,
        checkpoint=folder,
        data=data.dataset or keys.data,
        protocol={"modality": clips.modality, "windows": keys.windows, "features": "before the heads"},
        counts={"clips": len(frozen.rows), "skipped": len(frozen.skipped), "classes": len(data.names)},
        leakage=leaks,
        figures=figures,
        table=table(figures, data.dataset),
        skipped=frozen.skipped,
    )


def features(model: VATT, clips: WindowedClips, batch_size: int, data: DataConfig) -> Outputs:
    """Features (N, W, D) of the W windows of every clip, before the heads; see `outputs`."""

    def encode(raw: Tensor) -> Tensor:
        return model.encode(clips.modality, raw.flatten(0, 1)).unflatten(0, raw.shape[:2])

    return outputs(model, encode, clips, batch_size, data)


def probe(data: Labelled, splits: Sequence[Split], frozen: Outputs, device: torch.device) -> dict[str, Any]:
    """Train and test the classifiers on every split of the features (N, W, D) of clips with one class each.

    Returns:
        {name of a split: figures}, and, where there are several, under "mean" those of all.

    Raises:
        DataError: The clips of a split that could be read are too few.
    """
    positions = {row: position for position, row in enumerate(frozen.rows)}
    labels = np.array([data.labels[row][0] for row in frozen.rows])
    groups = np.array([data.sources[row] or storage.same(data.index[row]["video"]) for row in frozen.rows])
    judged: dict[str, list[Judged]] = {name: [] for name in CLASSIFIERS}
    figures: dict[str, Any] = {}
    for split in splits:
        train, test = (
            np.array([positions[row] for row in part if row in positions], int) for part in (split.train, split.test)
        )
        classes = len(np.unique(labels[train]))
        if classes < 2 or not len(test):
            raise DataError(
                f"split {split.name}: of the clips that could be read, {len(train)} of {classes} class(es) are "
                f"to train on and {len(test)} to test on; two classes and one clip are needed"
            )
        seen, unseen = frozen.values[train], frozen.values[test]
        model, strength = logistic(seen.mean(1).numpy(), labels[train], groups[train])
        head = vatt_head(seen.to(device), torch.from_numpy(labels[train]).to(device), len(data.names))
        by_head = averaged(head, unseen.to(device)).argmax(1).cpu().numpy()
        for name, predicted in (("logistic", model.predict(unseen.mean(1).numpy())), ("vatt", by_head)):
            judged[name].append(Judged(predicted == labels[test], groups[test]))
        chance = float((labels[test] == np.bincount(labels[train]).argmax()).mean())  # of the commonest class
        figures[split.name] = {
            "train": len(train),
            "test": len(test),
            "chance": chance,
            "C": strength,
            **{name: accuracy(judged[name][-1:]) for name in CLASSIFIERS},
        }
    if len(splits) > 1:
        chance = float(np.mean([figures[split.name]["chance"] for split in splits]))
        figures["mean"] = {"chance": chance, **{name: accuracy(judged[name]) for name in CLASSIFIERS}}
    return figures


class Judged(NamedTuple):
    """The test clips of a split: whether the class of each is right, bool (n,), and what it was cut from, (n,)."""

    hits: np.ndarray
    groups: np.ndarray


def accuracy(splits: Sequence[Judged]) -> dict[str, Any]:
    """The mean accuracy over splits, `top1`, and its 95% `interval` (low, high).

    Groups of clips are resampled, in all splits alike. What other training clips would do is not in the interval.
    """
    split = np.repeat(np.arange(len(splits)), [len(judged.hits) for judged in splits])
    tested = np.eye(len(splits))[split]  # (n, splits)
    right = tested * np.concatenate([judged.hits for judged in splits])[:, None]
    groups = np.concatenate([judged.groups for judged in splits])
    hits, counts = np.split(bootstrap.sums(np.hstack([right, tested]), groups), 2, axis=1)
    counts[counts == 0] = np.nan  # a draw has no group of this split: the other splits decide
    top1 = float(np.mean([judged.hits.mean() for judged in splits]))
    number = max(len(judged.hits) for judged in splits)  # of one split: several may test the same clips
    low, high = bootstrap.share_interval(np.nanmean(hits / counts, axis=1), round(top1 * number), number)
    return {"top1": top1, "interval": [low, high]}


def table(figures: dict[str, dict[str, Any]], data: str) -> str:
    """Markdown table of {model: figures of `probe`}, beside what others report of the data set."""
    rows = [
        {
            "model": model,
            "classifier": classifier,
            "split": split,
            "top-1": percent(values[classifier]["top1"]),
            "95% interval": " to ".join(map(percent, values[classifier]["interval"])),
            "chance": percent(values["chance"]),
            "test clips": str(values.get("test", "")),
        }
        for model, by_split in figures.items()
        for classifier in CLASSIFIERS
        for split, values in by_split.items()
    ]
    rows += [
        {"model": row.cited, "classifier": "linear", "split": row.part, "top-1": percent(row.figures["top1"])}
        for row in reported(NAME, data)
    ]
    return markdown(rows)
