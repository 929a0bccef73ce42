"""A tiny procedural corpus and a tiny configuration, shared by the tests of the recipe."""

import os
from pathlib import Path

import pytest

from recipes import config as configuration
from recipes import pretrain as recipe
from recipes.data import urls
from recipes.data.corpus import Corpus, build
from recipes.training.step import train_step

os.environ |= {urls.VARIABLE: ",".join((*urls.PROTOCOLS, "http", "memory")), urls.PRIVATE: "1"}  # servers of the tests
DEMO = Path(__file__).parents[2] / "recipes" / "configs" / "demo.yaml"
TINY = [
    "clip.frames=4", "clip.size=32", "clip.sample_rate=4000", "clip.audio_seconds=0.64", "clip.words=8",
    "model.audio_patch=128", "objective.audio_space=16", "objective.text_space=16",
    "train.steps=6", "train.batch_size=4", "train.warmup=2", "train.log_every=2", "train.checkpoint_every=3",
    "train.device=cpu", "data.workers=0", "model.dropout=0.1", "gamma.start=-1", "gamma.end=-1",
]  # fmt: skip
TIMES = dict.fromkeys(("samples_per_second", "data_seconds", "step_seconds"), 0)  # of a row, no two runs have the same


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A procedural corpus of ten videos, four of them held out."""
    folder = tmp_path_factory.mktemp("corpora") / "narrated"
    return build(Corpus(folder, "narrated", videos=6, test_videos=4, seed=1, size=48, fps=5, workers=1))


@pytest.fixture(scope="session")
def checkpoint(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on the corpus, to evaluate."""
    where = [f"run.dir={tmp_path_factory.mktemp('runs')}", f"data.manifest={corpus}"]
    config = configuration.load(DEMO, [*TINY, *where, f"data.test={corpus / 'test.jsonl'}", "train.steps=2"])
    recipe.pretrain(config)
    return config.folder


@pytest.fixture
def tiny(corpus: Path, tmp_path: Path):
    """Function of overrides that gives the configuration of a tiny run in the test's own folder."""

    def make(*overrides: str) -> configuration.Config:
        where = [f"run.dir={tmp_path / 'runs'}", f"data.manifest={corpus}", f"data.test={corpus / 'test.jsonl'}"]
        return configuration.load(DEMO, [*TINY, *where, *overrides])

    return make


class Crash(Exception):
    """What a test raises in the middle of a run."""


@pytest.fixture
def crash(monkeypatch: pytest.MonkeyPatch):
    """Function of a configuration: train it, and die in its fifth step."""

    def run(config: configuration.Config) -> None:
        calls = []

        def crashing(*arguments):
            calls.append(1)
            if len(calls) == 5:
                raise Crash
            return train_step(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(recipe, "train_step", crashing)
            with pytest.raises(Crash):
                recipe.pretrain(config)

    return run
