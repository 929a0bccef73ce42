"""Worker processes that hang or die: nothing is lost but the clip that did it, and the order stays what it was."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from recipes import pretrain as recipe
from recipes.data import vocabulary
from recipes.data.clips import Clip, NarratedClips, Skipped, TrainClips
from recipes.data.index import load_index
from recipes.data.loader import list_loader, train_loader
from recipes.data.workers import WorkerError
from recipes.training import checkpoint, metrics
from recipes.training.skipped import SKIPPED
from recipes.training.step import train_step
from tests.recipes import media
from tests.recipes.conftest import TIMES
from tests.recipes.faulty import BAD, FMT, Always, Faulty, die, die_once, err, hang, nothing, segfault

TWICE = "its worker died twice while reading it"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Five good videos."""
    root = tmp_path_factory.mktemp("videos")
    for number in range(5):
        media.write(root / f"{number}.mp4", seconds=1.0 + number / 5, size=(48, 48))
    rows = [{"id": f"clip {n}", "video": f"{n}.mp4", "text": f"word {n}"} for n in range(5)]
    (root / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return load_index(root / "manifest.jsonl")


def loaded(clips: TrainClips, workers: int = 2, timeout: float = 60, batches: int = 8) -> list[dict[str, Any]]:
    return list(islice(train_loader(clips, 2, seed=3, workers=workers, timeout=timeout), batches))


def same(a: Any, b: Any) -> bool:
    """Deep equality of batches."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, Clip):
        return same(vars(a), vars(b))
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool((a == b).all()) if isinstance(a, torch.Tensor | np.ndarray) else a == b


@pytest.mark.parametrize(
    ("fault", "timeout", "reason"), [(hang, 4, "the decoder or the storage hung for 4 s"), (segfault, 60, TWICE)]
)
def test_a_clip_that_takes_its_worker_along_is_skipped_and_nothing_else(
    index: Dataset, fault, timeout: float, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    skipped = Skipped(f"clip {BAD}", reason)
    expected = loaded(Faulty(index, lambda: skipped), workers=0)
    assert sum(skipped in batch["skipped"] for batch in expected) > 2  # but its workers die once or twice only
    assert same(loaded(Faulty(index, fault), timeout=timeout), expected)
    deaths = [record for record in caplog.records if "worker of the loader died" in record.message]
    assert all(f"while reading clip {BAD}" in record.message for record in deaths)
    # Both workers may have begun to read it before the first of them has died.
    assert 1 <= len(deaths) <= 2 if fault is hang else 2 <= len(deaths) <= 3


def test_an_accident_costs_nothing(index: Dataset, tmp_path: Path) -> None:
    assert same(loaded(Faulty(index, die_once, tmp_path / "mark")), loaded(Faulty(index, nothing), workers=0))
    assert (tmp_path / "mark").exists()


def test_workers_that_are_killed_at_any_moment_lose_no_batch(index: Dataset) -> None:
    clips = Faulty(index, nothing)
    found = []
    for number, batch in enumerate(islice(train_loader(clips, 2, seed=3, workers=2), 32)):
        found.append(batch)
        if number in (1, 12, 23):  # by then what was under way at the time before has come: no clip sees two deaths
            time.sleep(0.02 * number)  # in the middle of a clip, or with batches that are not yet fetched
            for process in active_children():
                os.kill(process.pid, signal.SIGKILL)
    assert same(found, loaded(clips, workers=0, batches=32))


def test_a_worker_that_dies_while_it_sends_a_batch(index: Dataset) -> None:
    """A batch larger than the pipe's buffer is cut off in the middle."""
    clips = NarratedClips(index, vocabulary.build(["word"]), FMT)
    keys = [[(clip, 0) for clip in range(5)] * 20 for _ in range(4)]
    batches = iter(list_loader(clips, keys, workers=1))
    found = [next(batches)]
    (process,) = active_children()
    time.sleep(1)  # by now it waits for room
    os.kill(process.pid, signal.SIGKILL)
    assert same([*found, *batches], list(list_loader(clips, keys, workers=0)))


def test_workers_that_die_whatever_they_read_are_an_error(index: Dataset) -> None:
    with pytest.raises(WorkerError, match=r"died 5 times without reading a batch, .*signal 9.*data\.workers=1"):
        next(iter(train_loader(Always(index, die), 4, seed=3, workers=1)))


def test_a_mistake_in_a_worker_is_raised_here(index: Dataset) -> None:
    with pytest.raises(KeyError, match="a column that is not there") as raised:
        loaded(Faulty(index, err))
    assert "in err\n" in raised.value.__notes__[0]


def test_workers_end_with_their_loader(index: Dataset) -> None:
    batches = iter(train_loader(Faulty(index, nothing), 2, seed=3, workers=2))
    next(batches)
    processes = active_children()
    assert len(processes) == 2
    batches.close()
    for process in processes:
        process.join(10)
        assert process.exitcode is not None


MAIN = """
import sys, time
from multiprocessing import active_children
from recipes.data.index import load_index
from recipes.data.loader import train_loader
from tests.recipes.faulty import Faulty, nothing

if __name__ == "__main__":
    batches = iter(train_loader(Faulty(load_index(sys.argv[1]), nothing), 2, seed=3, workers=2))
    next(batches)
    print(*[process.pid for process in active_children()], flush=True)
    time.sleep(1000)
"""


def test_workers_end_with_a_process_that_is_killed(index: Dataset, tmp_path: Path) -> None:
    script, manifest = tmp_path / "main.py", Path(index[0]["video"]).with_name("manifest.jsonl")
    script.write_text(MAIN)
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        [sys.executable, script, manifest], stdout=subprocess.PIPE, text=True, env=os.environ | paths
    )
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 2
    process.kill()
    process.communicate()
    patience = time.monotonic() + 60
    while time.monotonic() < patience and any(map(running, workers)):
        time.sleep(0.05)
    assert not any(map(running, workers))


def running(pid: int) -> bool:
    """Whether there is a process that has not ended; one whose parent is gone may not be cleared away yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_a_run_whose_workers_are_killed_is_like_any_other(tiny, monkeypatch) -> None:
    calm, disturbed = (tiny(f"run.name={name}", "data.workers=2") for name in ("calm", "disturbed"))
    recipe.pretrain(calm)
    calls = []

    def disturbing(*arguments):
        calls.append(active_children())
        if len(calls) in (2, 4):
            os.kill(calls[-1][0].pid, signal.SIGKILL)
        return train_step(*arguments)

    monkeypatch.setattr(recipe, "train_step", disturbing)
    recipe.pretrain(disturbed)
    assert len(calls) == 6
    rows = [[row | TIMES for row in metrics.read(run.folder)] for run in (calm, disturbed)]
    assert rows[0] == rows[1] and rows[0][-1]["step"] == 6
    assert same(*(checkpoint.read(checkpoint.latest(run.folder), "") for run in (calm, disturbed)))
    assert not (disturbed.folder / SKIPPED).exists()
