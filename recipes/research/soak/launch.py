"""A run under torchrun that is watched, and some of whose processes are killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from recipes.progress import progress_bar

EVERY = 5.0  # seconds between two looks
MODULE = "recipes.pretrain"
TRAINER, WORKER = "training process", "worker"


@dataclass
class Watch:
    """What was seen."""

    seconds: list[float] = field(default_factory=list)  # of each look, since the beginning
    training: list[float] = field(default_factory=list)  # their memory then, MiB; shared pages once
    loading: list[float] = field(default_factory=list)  # that of the loaders' workers
    faults: list[tuple[float, str]] = field(default_factory=list)  # (seconds, what was killed)
    code: int | None = None  # exit status of the launch


@dataclass(frozen=True)
class Faults:
    """How long to train, and what to kill.

    In the first third of the time training processes are killed, in the second workers of the loaders, then none.
    """

    minutes: float  # until the run is asked to stop
    processes: int  # that train together
    rounds: int  # how many processes of each kind are killed

    def due(self) -> list[tuple[float, str]]:
        """When to kill what: (seconds since the beginning, kind)."""
        third = 20 * self.minutes
        middles = [third * (number + 0.5) / self.rounds for number in range(self.rounds)]
        return [(middle, TRAINER) for middle in middles] + [(third + middle, WORKER) for middle in middles]


def soak(arguments: list[str], faults: Faults, log: Path, ready: Callable[[], bool]) -> Watch:
    """Train with arguments of `recipes.pretrain`, kill processes once the run is ready, and stop in order."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(faults.processes), "--max-restarts", str(faults.rounds + 1)]
    command += ["-m", MODULE, *arguments]
    watch, rng, due, total = Watch(), np.random.default_rng(0), faults.due(), 60 * faults.minutes
    with open(log, "wb") as file:
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        launch = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        root, began = psutil.Process(launch.pid), time.monotonic()
        with progress_bar(total=round(total), desc="soak", unit="s") as bar:
            while launch.poll() is None and (now := time.monotonic() - began) < total:
                bar.update(round(now) - bar.n)
                processes = {TRAINER: _trainers(root), WORKER: _workers(root)}
                watch.seconds.append(now)
                watch.training.append(_memory(processes[TRAINER]))
                watch.loading.append(_memory(processes[WORKER]))
                if due and due[0][0] <= now and ready() and (victims := processes[due[0][1]]):
                    _send(victims[rng.integers(len(victims))], signal.SIGKILL)
                    watch.faults.append((now, due.pop(0)[1]))
                time.sleep(EVERY)
        _send(root, signal.SIGTERM)  # torchrun passes it on, and all stop after the same step
        watch.code = launch.wait(timeout=600)
    return watch


def _descendants(root: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return root.children(recursive=True)
    return []


def _trainers(root: psutil.Process) -> list[psutil.Process]:
    return [p for p in _descendants(root) if MODULE in _command(p)]


def _workers(root: psutil.Process) -> list[psutil.Process]:
    """The processes that a fork server has made."""
    return [p for server in _descendants(root) if "forkserver" in _command(server) for p in _descendants(server)]


def _command(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _memory(processes: list[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        with suppress(psutil.Error):  # it has just ended
            total += process.memory_full_info().pss / 2**20
    return total


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)
