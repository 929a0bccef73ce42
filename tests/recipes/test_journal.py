"""What a run writes down: a full disk ends no run and loses no row, and rates are those of the last interval."""

import resource
import sys
from contextlib import contextmanager
from io import TextIOWrapper

import pytest
import torch

from recipes.data.skipped import Skipped, SkippedClips
from recipes.files import jsonl, write_atomically
from recipes.pretrain import TrainingError, pretrain
from recipes.progress import progress_bar
from recipes.training import bad_steps, checkpoint, journal, metrics
from recipes.training.journal import Clock, peak_memory
from recipes.training.metrics import Metrics
from recipes.training.step import widest


@contextmanager
def full(limit: int = 0):
    """No file of this process may grow beyond a size: real errors of real writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # TensorBoard's thread, too, reports
def test_rows_that_cannot_be_written_wait_and_none_is_lost(tmp_path, caplog):
    log = Metrics(tmp_path, 0)

    def row(step):
        log.add({"loss": float(step)}, torch.tensor([0.5, -0.5]), torch.tensor([True, True]))
        log.write(step)

    row(1)
    with full(limit=log.file.stat().st_size + 5):  # some of the row fits
        row(2)
        row(3)
        log.draw_histogram(3)
    assert [r["step"] for r in metrics.read_metrics(tmp_path)] == [1] and log.rows.failures == 2 and log.failures >= 2
    assert "cannot be written" in caplog.text and "2 line(s) wait" in caplog.text
    before = log.failures
    row(4)
    log.draw_histogram(4)
    log.close()
    assert [r["loss"] for r in metrics.read_metrics(tmp_path)] == [1.0, 2.0, 3.0, 4.0] and log.failures == before


def test_skipped_clips_wait_for_room(tmp_path):
    skipped = SkippedClips(tmp_path)
    with full():
        skipped.record([Skipped("a", "x"), Skipped("b", "y")])
    assert skipped.rows.failures == 2
    skipped.record([Skipped("a", "x")])
    skipped.record([Skipped("c", "z")])
    assert [row["id"] for row in jsonl.read_rows(tmp_path / "skipped.jsonl")] == ["a", "b", "c"]


def test_a_log_on_a_full_disk_ends_no_work(monkeypatch):
    with open("/dev/full", "wb", buffering=0) as file:
        monkeypatch.setattr(sys, "stderr", TextIOWrapper(file, write_through=True))
        with pytest.raises(OSError, match="No space left"):
            print("a line", file=sys.stderr)
        assert list(progress_bar(iterable=range(3))) == [0, 1, 2]
        monkeypatch.undo()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_run_goes_on_where_nothing_can_be_written_down_and_counts_it(tiny, monkeypatch):
    """Between the first checkpoint and the last step there is no room; every step is taken, every row is there."""
    config = tiny("train.steps=4", "train.log_every=1", "train.checkpoint_every=2")
    write = journal.Journal.write

    def limited(self, step, **facts):
        with full(limit=10 if step == 3 else resource.RLIM_INFINITY):
            write(self, step, **facts)

    monkeypatch.setattr(journal.Journal, "write", limited)
    pretrain(config)
    rows = metrics.read_metrics(config.folder)
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and rows[-1]["failed_writes"] == 2
    assert checkpoint.load_facts(checkpoint.latest(config.folder))["counts"]["failed_writes"] == 2


def test_a_dump_that_cannot_be_written_is_counted(tiny, monkeypatch):
    config = tiny("train.lr=1e30", "train.end_lr=1e30", "train.warmup=0", "train.max_bad_steps=2", "train.steps=20")
    counted = []
    monkeypatch.setattr(journal.Journal, "write", lambda self, step, **facts: counted.append(facts["failed_writes"]))

    def no_room(tensors, file):
        file.write_bytes(b"some fit")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bad_steps, "save_file", no_room)
    with pytest.raises(TrainingError, match="2 steps in a row"):
        pretrain(config)
    assert counted[-1] > 0 and not list((config.folder / "bad_steps").glob("*"))


def test_an_evaluation_that_cannot_be_written_is_done_again(tiny, monkeypatch):
    config = tiny("train.steps=2")

    def no_room(path, text):
        if path.name == "retrieval.json":
            raise OSError(28, "No space left on device")
        write_atomically(path, text)

    with monkeypatch.context() as patch:
        patch.setattr("recipes.pretrain.write_atomically", no_room)
        with pytest.raises(TrainingError, match=r"No space left.*training is done.*--resume evaluates"):
            pretrain(config)
    assert pretrain(config, resume=True)["trained"]


def test_rates_are_of_the_last_interval_and_waiting_is_apart(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(journal.time, "perf_counter", lambda: now[0])

    def batches():
        for wait in (1.0, 3.0, 0.5):
            now[0] += wait
            yield wait

    clock = Clock()
    rows = []
    for wait in clock.waiting(batches()):
        now[0] += 2 * wait  # the step
        clock.step(clips=6)
        if wait != 1.0:
            rows.append(clock.row())
            now[0] += 100  # a checkpoint
    assert rows == [
        {"samples_per_second": 1.0, "data_seconds": 2.0, "step_seconds": 4.0},
        {"samples_per_second": 4.0, "data_seconds": 0.5, "step_seconds": 1.0},
    ]
    assert clock.throughput == 0


def test_what_a_device_can_do():
    assert widest(torch.device("mps")) == torch.float32 and widest(torch.device("cpu")) == torch.float64
    assert peak_memory(torch.device("cpu")) == {}
