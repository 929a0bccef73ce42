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
from recipes.data.clips import Clip, NarratedClips, TrainClips, collate
from recipes.data.index import load_index
from recipes.data.loader import train_loader
from recipes.data.sampler import BatchSampler, Source
from recipes.data.skipped import SKIPPED, Skipped
from recipes.data.workers import Loader, WorkerError, bytes_of, guarded
from recipes.training import checkpoint, metrics
from recipes.training.step import train_step
from tests.recipes import media
from tests.recipes.conftest import TIMES
from tests.recipes.faulty import (
    BAD,
    FMT,
    Always,
    Faulty,
    Several,
    Unjoinable,
    die,
    die_once,
    err,
    hang,
    leave,
    nothing,
    ratio,
    segfault,
)  # fmt: skip

TWICE = "its worker died twice while reading it (signal 11, Segmentation fault)"


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


def here(clips: TrainClips, batches: int = 8) -> list[dict[str, Any]]:
    """What a loader should give, read in this process."""
    return [collate([clips[key] for key in keys]) for keys in islice(BatchSampler([Source(len(clips))], 2, 3), batches)]


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
    expected = here(Faulty(index, lambda: skipped))
    assert sum(skipped in batch["skipped"] for batch in expected) > 2  # but its workers die once or twice only
    assert same(loaded(Faulty(index, fault), timeout=timeout), expected)
    deaths = [record for record in caplog.records if "worker of the loader died" in record.message]
    assert all(f"while reading clip {BAD}" in record.message for record in deaths)
    # Both workers may have begun to read it before the first of them has died.
    assert 1 <= len(deaths) <= 2 if fault is hang else 2 <= len(deaths) <= 3


def test_an_accident_costs_nothing(index: Dataset, tmp_path: Path) -> None:
    assert same(loaded(Faulty(index, die_once, tmp_path / "mark")), here(Faulty(index, nothing)))
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
    assert same(found, here(clips, batches=32))


def test_a_worker_that_dies_while_it_sends_a_batch(index: Dataset) -> None:
    """A batch larger than the pipe's buffer is cut off in the middle."""
    clips = NarratedClips(index, vocabulary.build(["word"]), FMT)
    keys = [[(clip, 0) for clip in range(5)] * 20 for _ in range(4)]
    batches = iter(Loader(clips, keys, list, workers=1))
    found = [next(batches)]
    (process,) = active_children()
    time.sleep(1)  # by now it waits for room
    os.kill(process.pid, signal.SIGKILL)
    assert same([*found, *batches], [[clips[key] for key in batch] for batch in keys])


@pytest.mark.parametrize(("fault", "timeout", "cause"), [
    (leave, 60, "exit code 1"), (segfault, 60, "signal 11"), (die, 60, "signal 9"), (hang, 0.2, "hung for 0.2 s"),
])  # fmt: skip
def test_a_batch_of_clips_that_take_their_workers_along(tmp_path: Path, fault, timeout: float, cause: str) -> None:
    video = media.write(tmp_path / "v.mp4", seconds=1.0, size=(48, 48)).name
    rows = [{"id": f"clip {n}", "video": video, "text": "word"} for n in range(10)]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    clips = Several(load_index(tmp_path / "manifest.jsonl"), fault)
    keys = [[(0, row) for row in range(10)], [(1, 1), (1, 9)]]
    first, second = Loader(clips, keys, list, workers=1, timeout=timeout)
    assert [clip.id for clip in first] == [f"clip {n}" for n in range(10)]
    assert all(isinstance(clip, Skipped) and cause in clip.reason for clip in first[:8])
    assert all(isinstance(clip, Clip) for clip in first[8:])
    assert isinstance(second[0], Skipped) and isinstance(second[1], Clip)


def test_clips_that_all_take_their_workers_along_end_nothing_here(index: Dataset) -> None:
    for batch in loaded(Always(index, die), workers=1, batches=4):
        assert len(batch["skipped"]) == 2


def test_workers_that_die_although_they_read_nothing_are_an_error(index: Dataset) -> None:
    clips = Unjoinable(index, nothing)
    with pytest.raises(WorkerError, match=r"died 5 times without reading a batch.*signal 9.*data\.workers=1"):
        next(iter(Loader(clips, [[(0, 1), (0, 2)]], clips.join, workers=1)))


@pytest.mark.parametrize("bound", [1e300, float("inf")])
def test_a_timeout_and_a_prefetch_of_any_size(index: Dataset, bound: float) -> None:
    clips = Faulty(index, nothing)
    assert same(list(Loader(clips, [[(0, 1)]], list, 1, timeout=bound, prefetch=bound)), [[clips[0, 1]]])


def test_no_worker_is_one_worker(index: Dataset) -> None:
    assert same(loaded(Faulty(index, segfault), workers=0, batches=2), loaded(Faulty(index, segfault), 1, batches=2))


def test_batches_that_are_read_ahead_are_bounded(index: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    def drawn(prefetch: float) -> int:
        """How many batches are asked for until the fourth has come."""
        counted: list[int] = []
        keys = ([(epoch, 0)] for epoch in range(99) if counted.append(epoch) is None)
        batches = iter(Loader(Faulty(index, nothing), keys, collate, 1, prefetch=prefetch))
        clip = [next(batches) for _ in range(4)][-1]
        batches.close()
        assert bytes_of(clip) > 4 * 32 * 32 * 3 + 8000 * 4
        return len(counted)

    assert drawn(prefetch=1.0) == 4 + 4
    assert not caplog.records
    assert drawn(prefetch=1e-6) == 4 + 1
    assert "more than the 1e-06 GiB of data.prefetch_gib" in caplog.text


def test_a_function_of_items_is_guarded() -> None:
    results = list(guarded(ratio, [("one", 1), ("none", 0), ("two", 2)]))
    skipped = Skipped("none", TWICE)
    assert results == [(1, 1.0), (0, skipped), (2, 0.5)]


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


@pytest.mark.slow
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
    rows = [[row | TIMES for row in metrics.read_metrics(run.folder)] for run in (calm, disturbed)]
    assert rows[0] == rows[1] and rows[0][-1]["step"] == 6
    assert same(*(checkpoint.read_tensors(checkpoint.latest(run.folder), "") for run in (calm, disturbed)))
    assert not (disturbed.folder / SKIPPED).exists()
