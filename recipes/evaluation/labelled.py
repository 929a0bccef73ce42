"""What the evaluations on labelled data sets share: their keys, and the checks before any clip is decoded."""

from dataclasses import dataclass
from typing import NamedTuple

from recipes.data.labels import Labelled, Split, load_labelled
from recipes.errors import ConfigError, DataError
from recipes.evaluation import leakage
from recipes.evaluation.disjoint import check_disjoint
from recipes.evaluation.leakage import Leakage
from recipes.evaluation.results import EvaluationKeys
from recipes.keys import key
from recipes.restore import Restored, restore_with


@dataclass
class LabelledKeys(EvaluationKeys):
    """Keys of the evaluations on labelled data sets."""

    data: str = key(meaning="a labelled data set, see docs/evaluation.md")
    split: str | None = key(None, "name of the only split to use; null: all, one after the other")


class Job(NamedTuple):
    """What is evaluated, on what: the model, the data, its splits, and what is known of their leakage."""

    restored: Restored
    data: Labelled
    splits: list[Split]
    leakage: Leakage

    @property
    def name(self) -> str:
        """The data set as people call it, Kinetics by its number of classes; "" of a manifest."""
        return f"Kinetics-{len(self.data.names)}" if self.data.dataset == "Kinetics" else self.data.dataset

    def plan(self, work: str) -> str:
        """What would be done: `work`, on which splits."""
        text = f"{self.restored.folder} {work}; {len(self.data.names)} classes; {self.leakage.summary}."
        parts = ((split.name, len(split.train), len(split.test)) for split in self.splits)
        lines = [f"split {name}: {train} clips to train on, {test} to test on" for name, train, test in parts]
        return "\n".join([text, *lines])


def prepare(keys: LabelledKeys, task: str, single: bool) -> Job:
    """Load the checkpoint and the lists of a labelled data set, and check what can be checked without decoding.

    Raises:
        ConfigError: The model takes features in place of pictures and sound.
        DataError: There is no such split, its two parts share a video, or a clip has several labels or none, where
            every one must have a ``single`` one.
        OSError, ValueError: See `load_labelled`, `restore` and `leakage.check`.
    """
    data = load_labelled(keys.data)
    splits = [split for split in data.splits if keys.split in (None, split.name)]
    if not splits:
        names = ", ".join(split.name for split in data.splits)
        raise DataError(f"split={keys.split}: no such split; the data have {names}")
    used = [row for split in splits for row in (*split.train, *split.test)]
    if wrong := [row for row in used if single and len(data.labels[row]) != 1]:
        raise DataError(
            f"the clip {data.index[wrong[0]]['id']} has {len(data.labels[wrong[0]])} labels: {task} needs exactly one "
            "for each clip; tagging takes several"
        )
    for split in splits:
        check_disjoint(data, split)
    restored = restore_with(keys)
    if restored.config.clip.inputs != "raw":
        raise ConfigError(f"{restored.folder} takes features (clip.inputs=features); {task} reads pictures and sound")
    tested = data.index.select(sorted({row for split in splits for row in split.test}))
    return Job(restored, data, splits, leakage.check(restored.folder, tested, allow=keys.allow_leakage))
