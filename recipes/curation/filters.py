"""The filters: plain pre-training runs on trusted clips, each without a fold of them."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from recipes.config import BILLION, Config, RunConfig
from recipes.curation.folds import fold_of
from recipes.data import storage
from recipes.data.manifest import fields_of
from recipes.errors import DataError
from recipes.files import replacing
from recipes.keys import key

Row = dict[str, Any]


@dataclass
class CurateKeys:
    """What is trusted, and how the filters learn from it."""

    trusted: str = key(meaning="manifest of clips that somebody has looked at, see docs/curation.md")
    out: Path = key(meaning="folder of filters, scores, weights and the report; what is there is gone on with")
    filters: int = key(8, "models, each of which leaves out a part of the trusted clips", least=2, most=64)
    steps: int = key(300, "of each filter", least=1, most=BILLION)
    rounds: int = key(2, "at most; in later ones filters learn from the weighed data, too", least=1, most=20)
    bank: int = key(1024, "clips against which all pairs are scored", least=2, most=2**20)
    draws: int = key(100, "of trusted recordings, for intervals", least=10, most=10**5)


@dataclass(frozen=True)
class Trusted:
    """The trusted clips, and the fold of each."""

    index: Dataset
    groups: list[str]
    folds: np.ndarray

    def recordings(self, fold: int) -> set[str]:
        """The names of the recordings of a fold."""
        rows = self.index.select(np.flatnonzero(self.folds == fold))
        return set().union(*map(names_of, rows))

    @classmethod
    def of(cls, index: Dataset, filters: int, seed: int) -> "Trusted":
        """Deal the rows of an index to folds; a DataError if they cannot be dealt."""
        if several := [row["id"] for row in index if len(row["narrations"]) > 1]:
            raise DataError(
                f"{len(several)} trusted row(s) have several narrations, for example {several[0]}: a person judges one "
                "text at a time, so each has a row of its own, with start and end"
            )
        groups = [group_of(row) for row in index]
        try:
            return cls(index, groups, fold_of(groups, filters, seed))
        except ValueError as error:
            raise DataError(f"curate.trusted: {error}") from error


def names_of(row: Row) -> set[str]:
    """What a row is cut from, by all its names: two rows with one name in common are of one recording."""
    return {group_of(row), storage.same(row["video"])}


def group_of(row: Row) -> str:
    """What a row is cut from."""
    return row["group"] or storage.same(row["video"])


def halves(groups: Sequence[str], filters: int, seed: int) -> np.ndarray:
    """Which recordings a filter leaves out of the data, bool (filters, N): each filter about half of them.

    Each recording is left out by half of the filters, so that as many judge it that have not learnt from it.
    """
    _, group = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    rng = np.random.default_rng(seed)
    ranks = rng.random((filters, int(group.max(initial=-1)) + 1)).argsort(0).argsort(0)
    left_out: np.ndarray = (ranks < filters // 2)[:, group]
    return left_out


def filter_config(config: Config, keys: CurateKeys, folder: Path, number: int, words: Path) -> Config:
    """The run of one filter: a plain one, of a few steps, tested on the fold that it leaves out."""
    plain = Config(**{field.name: getattr(config, field.name) for field in fields(Config)})
    return replace(
        plain,
        harmonize="none",
        run=RunConfig(name=f"filter-{number}", dir=str(folder)),
        gram=replace(config.gram, every=0, group_size=1, probe=[]),
        data=replace(
            config.data, manifest=str(manifest_of(folder, number)), sources={}, test=None, vocabulary_file=str(words)
        ),
        train=replace(config.train, steps=keys.steps, seed=config.train.seed + number),
        evaluate=replace(config.evaluate, untrained=False, every=0, best=None),
    )


def manifest_of(folder: Path, number: int) -> Path:
    """What a filter trains on and is tested on."""
    return folder / f"filter-{number}.jsonl"


def write_manifest(path: Path, trusted: Trusted, number: int, data: Iterable[Row]) -> None:
    """Write what a filter learns from: the trusted clips without its fold, which tests it, and rows of the data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row, fold in zip(trusted.index, trusted.folds, strict=True):
            write_row(file, row | {"split": "test" if fold == number else "train"}, path.parent, "trusted/")
        for row in data:
            write_row(file, row | {"split": "train"}, path.parent)


def write_row(file: Any, row: Row, root: Path, prefix: str = "") -> None:
    """Write a row of an index as a line of a manifest in the folder ``root``."""
    fields = fields_of(row | {"id": prefix + row["id"]}, storage.relative(row["video"], root.absolute()))
    file.write(json.dumps(fields, ensure_ascii=False) + "\n")
