"""A run under torchrun that is watched, and some of whose processes are killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from recipes.progress import progress_bar

EVERY = 5.0  # seconds between two looks
MODULE = "recipes.pretrain"


@dataclass
class Watch:
    """What was seen.

    Attributes:
        seconds, training, loading: Time since the beginning; memory of the training processes and of the loaders'
            workers then, MiB, where shared pages count once.
        faults: (seconds, what was killed).
        code: The exit status of the launch.
    """

    seconds: list[float] = field(default_factory=list)
    training: list[float] = field(default_factory=list)
    loading: list[float] = field(default_factory=list)
    faults: list[tuple[float, str]] = field(default_factory=list)
    code: int | None = None


def soak(
    arguments: list[str], processes: int, minutes: float, rounds: int, log: Path, ready: Callable[[], bool]
) -> Watch:
    """Train, kill processes, and stop in order.

    In the first third of the time training processes are killed, in the second workers of the loaders, then none.

    Args:
        arguments: Of `recipes.pretrain`.
        processes: That train together.
        minutes: Until the run is asked to stop.
        rounds: How many processes of each kind are killed.
        log: File for all that is said.
        ready: Whether the first steps were taken; before that nothing is killed.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["--max-restarts", str(rounds + 1), "-m", MODULE, *arguments]
    watch, rng, total = Watch(), np.random.default_rng(0), 60 * minutes
    due = [(total / 3 * (k + 0.5) / rounds, _trainers, "training process") for k in range(rounds)]
    due += [(total / 3 * (1 + (k + 0.5) / rounds), _workers, "worker") for k in range(rounds)]
    with open(log, "wb") as file:
        launch = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env={"OMP_NUM_THREADS": "1", **os.environ}
        )
        root, began = psutil.Process(launch.pid), time.monotonic()
        with progress_bar(total=round(total), desc="soak", unit="s") as bar:
            while launch.poll() is None and (now := time.monotonic() - began) < total:
                bar.update(round(now) - bar.n)
                watch.seconds.append(now)
                watch.training.append(_memory(_trainers(root)))
                watch.loading.append(_memory(_workers(root)))
                if due and due[0][0] <= now and ready() and (victims := due[0][1](root)):
                    _kill(victims[rng.integers(len(victims))], signal.SIGKILL)
                    watch.faults.append((now, due.pop(0)[2]))
                time.sleep(EVERY)
        _kill(root, signal.SIGTERM)  # torchrun passes it on, and all stop after the same step
        watch.code = launch.wait(timeout=600)
    return watch


def _descendants(root: psutil.Process) -> list[psutil.Process]:
    try:
        return root.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _trainers(root: psutil.Process) -> list[psutil.Process]:
    return [p for p in _descendants(root) if MODULE in _command(p)]


def _workers(root: psutil.Process) -> list[psutil.Process]:
    """The processes that a fork server has made."""
    return [p for server in _descendants(root) if "forkserver" in _command(server) for p in _descendants(server)]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _memory(processes: list[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        try:
            total += process.memory_full_info().pss / 2**20
        except psutil.Error:
            continue  # it has just ended
    return total


def _kill(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
