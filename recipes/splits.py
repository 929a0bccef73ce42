"""The videos that a run trains on, and those that it holds out."""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, concatenate_datasets, disable_progress_bars, load_from_disk

from recipes.config import Config, CorpusConfig, SourceConfig
from recipes.data import storage
from recipes.data.corpus import Corpus, build
from recipes.data.identity import divided
from recipes.data.index import ROWS_AT_ONCE, load_index
from recipes.data.sampler import Source

TRAIN = ("train", "training", "")  # "": no split is named
TEST = ("test", "testing")
INDEX, TEST_INDEX, SOURCES = "index", "index_test", "sources.json"  # in the folder of a run of several processes
HOLDOUT = 0.1  # share of videos held out where a manifest names no test split

log = logging.getLogger(__name__)


class Splits(NamedTuple):
    """The training index, the test index, and the sources of the training index in their order."""

    train: Dataset
    test: Dataset
    sources: list[Source]


def train_and_test(config: Config) -> Splits:
    """Load the training and the test index.

    Test clips are those of `data.test`, else those of split "test" of each source, else a tenth of its videos, by a
    hash of groups or, without, of paths. Training takes the rows of split "train" and those without one. In a mixture
    an id begins with the name of its source.

    Raises:
        ValueError, OSError: An index cannot be read, a video is in both, or one of the two is empty.
    """
    sources, test = dict(config.data.sources), config.data.test
    if config.data.manifest is not None:
        sources = {"": SourceConfig(config.data.manifest)}
    elif not sources:
        folder = procedural_corpus(config.corpus)
        sources, test = {"": SourceConfig(str(folder))}, test or str(folder / "test.jsonl")
    parts = [_split(name, source.manifest, hold_out=test is None) for name, source in sources.items()]
    train = concatenate_datasets([part for part, _ in parts])
    tests = concatenate_datasets([part for _, part in parts]) if test is None else _test_rows(load_index(test))
    if not len(tests):
        raise ValueError(f"{config.data_name}: no video to test on; data.test names another manifest for that")
    tested = set(_videos(tests))  # the smaller part: what is trained on is read past it
    leaked = {video for video in _videos(train) if video in tested}
    if leaked:
        raise ValueError(f"{len(leaked)} video(s) are both in training and in test, for example {min(leaked)}")
    if shared := (set(_column(train, "group")) & set(_column(tests, "group"))) - {None}:
        log.warning("%d group(s) are both in training and in test, for example %s", len(shared), min(shared))
    weights = (source.weight for source in sources.values())
    sized = [Source(len(part), weight) for (part, _), weight in zip(parts, weights, strict=True)]
    return Splits(train, tests, sized)


def save_splits(splits: Splits, folder: Path) -> None:
    """Write the splits for the other processes, so that only one reads the manifests."""
    disable_progress_bars()
    for name, index in ((INDEX, splits.train), (TEST_INDEX, splits.test)):
        shutil.rmtree(folder / name, ignore_errors=True)
        index.save_to_disk(folder / name)
    (folder / INDEX / SOURCES).write_text(json.dumps(splits.sources), encoding="utf-8")


def load_splits(folder: Path) -> Splits:
    """Read what `save_splits` wrote; the rows are mapped into memory."""
    sources = json.loads((folder / INDEX / SOURCES).read_text(encoding="utf-8"))
    train, test = (load_from_disk(str(folder / name)) for name in (INDEX, TEST_INDEX))
    return Splits(train, test, [Source(*source) for source in sources])


def corpus_folder(corpus: CorpusConfig) -> Path:
    """Folder of the procedural corpus."""
    return Path(corpus.dir).expanduser() / f"{corpus.style}-{corpus.videos}-{corpus.test_videos}-seed{corpus.seed}"


def files_to_read(config: Config) -> list[str]:
    """Local files and folders that a run reads, as its configuration names them."""
    data = config.data
    named = [
        data.manifest,
        data.test,
        data.word_vectors,
        data.vocabulary_file,
        *(source.manifest for source in data.sources.values()),
    ]
    if data.manifest is None and not data.sources:
        named.append(str(corpus_folder(config.corpus)))
    return [name for name in named if name is not None and not storage.is_url(name)]


def procedural_corpus(corpus: CorpusConfig) -> Path:
    """Folder of the procedural corpus, built if it is not there."""
    folder = corpus_folder(corpus)
    if not folder.exists():
        log.info("building the procedural corpus in %s (a minute, once)", folder)
        with suppress(FileExistsError):  # another process has just built it
            build(Corpus(folder, corpus.style, corpus.videos, corpus.test_videos, corpus.seed))
    return folder


def _split(name: str, manifest: str, hold_out: bool) -> tuple[Dataset, Dataset]:
    """The rows of a source to train on, and those to test on: none without ``hold_out``."""
    prefix = f"{name}/" if name else ""
    index = load_index(manifest, prefix=prefix)
    splits = {split.casefold() for split in set(_column(index, "split"))}
    if unused := splits - set(TRAIN) - set(TEST):
        log.warning("%s: rows of split %s are not used", manifest, ", ".join(map(repr, sorted(unused))))
    tested = _tested(index, manifest, hold_out, prefix)
    train, test = _rows(index, _named(index, TRAIN) & ~tested), _rows(index, tested & hold_out)
    if hold_out and not splits & set(TEST):
        log.warning(
            "%s names no test split: a tenth is held out by a hash of its groups or, without, the videos' paths",
            manifest,
        )
        if cut := divided(train, test):
            log.warning(
                "%s: clips of one source seem to be in training and in test, for example %s and %s (%d such sources): "
                "a column 'group' that names it (film, recording, channel) keeps them together",
                manifest,
                *next(iter(cut.values())),
                len(cut),
            )
    if len(train) < 2:
        raise ValueError(
            f"{manifest}: {len(train)} video(s) to train on and {len(test)} to test on; at least 2 and 1 are "
            f"needed. Splits: {', '.join(map(repr, sorted(splits)))}."
        )
    return train, test


def held_out(manifest: str, hold_out: bool) -> Dataset:
    """The rows of a manifest that a run would hold out: its test split or, with `hold_out` and without one, a tenth."""
    index = load_index(manifest)
    return _rows(index, _tested(index, manifest, hold_out, ""))


def trained_on(manifest: str) -> Dataset:
    """The rows of a manifest that a run would train on: neither those that it would hold out nor those of other splits.

    Raises:
        ValueError: There is none.
    """
    index = load_index(manifest)
    rows = _rows(index, _named(index, TRAIN) & ~_tested(index, manifest, True, ""))
    if not len(rows):
        splits = ", ".join(map(repr, sorted(set(_column(index, "split")))))
        raise ValueError(f"{manifest}: no row to train on; splits: {splits}")
    return rows


def _test_rows(index: Dataset) -> Dataset:
    """The test split of a manifest; all its rows if it has none."""
    test = _named(index, TEST)
    return _rows(index, test) if test.any() else index


def _tested(index: Dataset, manifest: str, hold_out: bool, prefix: str) -> np.ndarray:
    """Mask of the rows to test on; without a test split, a hash of groups or else of paths chooses a tenth."""
    test = _named(index, TEST)
    if not hold_out or test.any():
        return test
    root = Path(manifest).resolve()
    groups = zip(_column(index, "video"), _column(index, "group"), strict=True)
    names = (
        group.removeprefix(prefix) if group else storage.relative(storage.same(video), root) for video, group in groups
    )
    tenth = (int(hashlib.sha1(name.encode()).hexdigest()[:8], 16) % 1000 < 1000 * HOLDOUT for name in names)
    return np.fromiter(tenth, bool, len(index)) & _named(index, TRAIN)


def _named(index: Dataset, names: Sequence[str]) -> np.ndarray:
    """Mask of the rows whose split has one of these names."""
    return np.fromiter((split.casefold() in names for split in _column(index, "split")), bool, len(index))


def _rows(index: Dataset, mask: np.ndarray) -> Dataset:
    return index.select(np.flatnonzero(mask))


def _column(index: Dataset, name: str) -> Iterator[Any]:
    """The values of a column, block by block; `Dataset.unique` would copy the rows of a selection."""
    return (value for rows in index.select_columns(name).iter(ROWS_AT_ONCE) for value in rows[name])


def _videos(index: Dataset) -> Iterator[str]:
    return map(storage.same, _column(index, "video"))
