"""What a run trains on and what it holds out, from its configuration."""

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

from datasets import Dataset

from recipes.config import Config, CorpusConfig
from recipes.data.corpus import build
from recipes.data.index import load_index

TRAIN = ("train", "training", "")  # "": no split is named
TEST = ("test", "testing")
HOLDOUT = 0.1  # share of videos held out where a manifest names no test split

log = logging.getLogger(__name__)


class DataError(ValueError):
    """Data that a run cannot use."""


def train_and_test(config: Config) -> tuple[Dataset, Dataset]:
    """Load the training and the test index.

    The procedural corpus is built where `data.manifest` is not given. Test clips are those of `data.test`, else the
    manifest's split "test", else a tenth of the videos, chosen by a hash of their paths. Training takes the rows of
    split "train" and those without one; other splits are left alone.

    Raises:
        ValueError, OSError: An index cannot be read, a video is in both, or one of the two is empty.
    """
    manifest, test = config.data.manifest, config.data.test
    if manifest is None:
        folder = procedural_corpus(config.corpus)
        manifest, test = str(folder), test or str(folder / "test.jsonl")
    index = load_index(manifest)
    splits = {name.casefold() for name in index["split"]}
    if test is not None:
        held_out = load_index(test)
        if any(name.casefold() in TEST for name in held_out["split"]):
            held_out = _rows(held_out, lambda row: row["split"].casefold() in TEST)
        train = _rows(index, lambda row: row["split"].casefold() in TRAIN)
    elif splits & set(TEST):
        held_out = _rows(index, lambda row: row["split"].casefold() in TEST)
        train = _rows(index, lambda row: row["split"].casefold() in TRAIN)
    else:
        log.warning("%s names no test split: a tenth of its videos is held out by a hash of their paths", manifest)
        root = Path(manifest).resolve()
        index = _rows(index, lambda row: row["split"].casefold() in TRAIN)
        held_out = _rows(index, lambda row: _held_out(row["video"], root))
        train = _rows(index, lambda row: not _held_out(row["video"], root))
    if unused := splits - set(TRAIN) - set(TEST):
        log.warning("%s: rows of split %s are left alone", manifest, ", ".join(map(repr, sorted(unused))))
    if len(train) < 2 or not len(held_out):
        raise ValueError(
            f"{manifest}: {len(train)} video(s) to train on and {len(held_out)} to test on; at least 2 and 1 are "
            f"needed. Splits: {', '.join(map(repr, sorted(splits)))}."
        )
    leaked = {os.path.realpath(v) for v in train["video"]} & {os.path.realpath(v) for v in held_out["video"]}
    if leaked:
        raise ValueError(f"{len(leaked)} video(s) are both in training and in test, for example {min(leaked)}")
    return train, held_out


def procedural_corpus(corpus: CorpusConfig) -> Path:
    """Folder of the procedural corpus, built if it is not there."""
    name = f"{corpus.style}-{corpus.videos}-{corpus.test_videos}-seed{corpus.seed}"
    folder = Path(corpus.dir) / name
    if not folder.exists():
        log.info("building the procedural corpus in %s (a minute, once)", folder)
        build(folder, corpus.style, corpus.videos, corpus.test_videos, corpus.seed)
    return folder


def _rows(index: Dataset, keep: Callable[[dict[str, str]], bool]) -> Dataset:
    columns = index.select_columns(["video", "split"])
    return index.select([i for i, row in enumerate(columns) if keep(row)])


def _held_out(video: str, root: Path) -> bool:
    """By the path relative to the manifest: the same on every machine, and for every row of a video."""
    path = os.path.relpath(os.path.realpath(video), root)
    return int(hashlib.sha1(path.encode()).hexdigest()[:8], 16) % 1000 < 1000 * HOLDOUT
