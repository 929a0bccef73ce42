"""Data sets that break the process that reads them, for tests of the loader's workers, which import nothing else."""

import ctypes
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset

from recipes.config import AugmentConfig, ClipFormat
from recipes.data import vocabulary
from recipes.data.clips import Clip, TrainClips
from recipes.data.skipped import Skipped

FMT = ClipFormat(frames=4, fps=10.0, size=32, audio_seconds=0.5, narrations=1, words=4)
BAD = 2  # the row on which workers hang and die


class Faulty(TrainClips):
    """Something happens before the bad row is read."""

    def __init__(self, index: Dataset, fault: Callable[..., Any], *arguments: Any):
        super().__init__(index, vocabulary.build(["word"]), FMT, 0, AugmentConfig())
        self.fault, self.arguments = fault, arguments

    def __getitem__(self, key: tuple[int, int]) -> Clip | Skipped:
        if key[1] == BAD and (skipped := self.fault(*self.arguments)):
            return skipped
        return super().__getitem__(key)


class Several(Faulty):
    """Something happens before any of the first rows is read."""

    rows = 8

    def __getitem__(self, key: tuple[int, int]) -> Clip | Skipped:
        if key[1] < self.rows:
            self.fault(*self.arguments)
        return super().__getitem__(key)


class Unjoinable(Faulty):
    """All clips are readable, but joining them kills the process."""

    def join(self, clips: list[Clip | Skipped]) -> None:
        """Die, as when /dev/shm is full."""
        die()


class Always(Faulty):
    """Something happens before any row is read."""

    def __getitem__(self, key: tuple[int, int]) -> Clip | Skipped:
        return super().__getitem__((key[0], BAD))


def nothing() -> None:
    """Do nothing."""


def hang() -> None:
    """Sleep in C with the lock of Python's interpreter, as a decoder might."""
    ctypes.PyDLL(None).sleep(1000)


def segfault() -> None:
    """Read from address 0."""
    ctypes.string_at(0)


def fatal(*_: Any, **__: Any) -> None:
    """Read from address 0, whatever the arguments."""
    segfault()


def ratio(item: int) -> float:
    """1 / item; 0 kills the process."""
    return 1 / item if item else fatal()


def leave() -> None:
    """End the process without a word."""
    os._exit(1)


def die() -> None:
    """Die by the signal of the kernel's out-of-memory killer."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(mark: Path) -> None:
    """Die the first time only."""
    if not mark.exists():
        mark.touch()
        die()


def err() -> None:
    """Raise what a mistake in the program raises."""
    raise KeyError("a column that is not there")
