"""What a run trains on and what it holds out, from its configuration."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

from datasets import Dataset

from recipes.config import Config, CorpusConfig
from recipes.data.corpus import build
from recipes.data.index import load_index

HELD_OUT = ("test", "val", "valid", "validation", "dev")
HOLDOUT = 0.1  # share of videos held out where a manifest names no test split

log = logging.getLogger(__name__)


def train_and_test(config: Config) -> tuple[Dataset, Dataset]:
    """Load the training and the test index.

    The procedural corpus is built where `data.manifest` is not given. Test clips are those of `data.test`, else the
    manifest's split "test", else a tenth of the videos, chosen by a hash of their ids.

    Raises:
        ValueError, OSError: An index cannot be read, a video is in both, or one of the two is empty.
    """
    manifest, test = config.data.manifest, config.data.test
    if manifest is None:
        folder = procedural_corpus(config.corpus)
        manifest, test = str(folder), test or str(folder / "test.jsonl")
    index = load_index(manifest)
    if test is not None:
        held_out = load_index(test)
        if "test" in held_out["split"]:
            held_out = _rows(held_out, lambda row: row["split"] == "test")
        train = _rows(index, lambda row: row["split"] not in HELD_OUT)
    else:
        marked = "test" in index["split"]
        if not marked:
            log.warning("%s names no test split: a tenth of its videos is held out by a hash of their ids", manifest)
        held_out = _rows(index, lambda row: row["split"] == "test" if marked else _held_out(row["id"]))
        train = _rows(index, lambda row: row["split"] not in HELD_OUT and (marked or not _held_out(row["id"])))
    for name, part in (("train on", train), ("test on", held_out)):
        if not len(part):
            raise ValueError(f"{manifest}: no video is left to {name}")
    leaked = set(train["video"]) & set(held_out["video"])
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
    columns = index.select_columns(["id", "split"])
    return index.select([i for i, row in enumerate(columns) if keep(row)])


def _held_out(name: str) -> bool:
    return int(hashlib.sha1(name.encode()).hexdigest()[:8], 16) % 1000 < 1000 * HOLDOUT
