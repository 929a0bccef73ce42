"""Processes that read batches. One that hangs or dies is replaced, and its work is done again.

Whatever decodes media does so in such a process, never in a command: a broken file can end it. PyTorch's DataLoader
ends the run with its first dead worker. Here every worker has a pipe of its own, and its end disturbs no other.
"""

import logging
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import count, islice
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from threading import Thread
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch.multiprocessing import get_context  # its pickler lets tensors cross in shared memory

from recipes.data.decode import BrokenClip
from recipes.data.skipped import Skipped
from recipes.errors import Failure

AHEAD = 4  # the most batches under way for each worker
DEATHS = 5  # of a worker and its successors, with no clip to blame and no batch in between, that end the run
GRACE = 5  # seconds for a process that has closed its pipe to be gone
HUNG = -signal.SIGALRM  # exit code of a process that took too long for a clip
LONGEST = 1e8  # seconds that the kernel's alarm can be set to
NOTHING = -1  # in place of the number of the batch that is read
PREFETCH = 4.0  # GiB
TIMEOUT = 60.0  # seconds for a clip

Batch = TypeVar("Batch")
Item = TypeVar("Item")
Result = TypeVar("Result")
log = logging.getLogger(__name__)


class WorkerError(Failure):
    """Workers that die although they read nothing."""


class Loader(Generic[Batch]):
    """Iterates over batches in their order, which depends neither on the workers nor on their deaths.

    A clip on which a worker hangs becomes a `Skipped` at once; one on which a worker dies is read once more, as the
    death may have been an accident, such as a lack of memory. Once it is skipped, so are all clips of its row.
    """

    def __init__(
        self,
        dataset: Any,
        batches: Iterable[Sequence[Any]],
        join: Callable[[list[Any]], Batch],
        workers: int,
        timeout: float = TIMEOUT,
        prefetch: float = PREFETCH,
    ):
        """
        Args:
            dataset: gives items by key; it has `row(key)`, hashable, and `name(row)`, for people.
            batches: the keys of each batch; taken as they are needed, so they may be endless.
            join: makes a batch of its clips.
            workers: processes that read, at least one: 0 counts as 1.
            timeout: seconds that a worker may read one clip before it counts as hung.
            prefetch: GiB of batches under way, unless that is less than one batch for each worker.
        """
        self.dataset, self.batches, self.join, self.workers = dataset, batches, join, max(1, workers)
        self.timeout, self.prefetch = timeout, prefetch
        self.largest = 0  # bytes of a batch
        self.deaths = 0
        self.suspects: set[tuple[int, int]] = set()  # batch, and position in it, on which a worker has died
        self.lost: dict[Any, Skipped] = {}  # rows that are not read any more

    def __iter__(self) -> Iterator[Batch]:
        """Raises a WorkerError if a worker and its successors keep dying between clips."""
        tasks, done = enumerate(self.batches), {}
        crew = [Worker(self) for _ in range(self.workers)]
        given = self._give(crew, islice(tasks, self.workers))
        try:
            for number in count():
                while number not in done:
                    if not any(worker.tasks for worker in crew):
                        return
                    self._collect(crew, done)
                given += self._give(crew, islice(tasks, max(0, number + 1 + self._ahead() - given)))
                batch = done.pop(number)
                if isinstance(batch, Exception):
                    raise batch
                yield batch
        finally:
            for worker in crew:
                worker.stop()

    def _ahead(self) -> int:
        room = self.prefetch * 2**30 / max(self.largest, 1)
        return int(min(max(room, self.workers), AHEAD * self.workers))

    def _give(self, crew: list["Worker"], tasks: Iterable[tuple[int, Sequence[Any]]]) -> int:
        """Hands out batches; returns how many."""
        given = 0
        for number, keys in tasks:
            crew[number % len(crew)].give(number, keys)
            given += 1
        return given

    def _collect(self, crew: list["Worker"], done: dict[int, Batch | Exception]) -> None:
        """Waits until a worker has read a batch, or is dead."""
        ready = wait([worker.pipe for worker in crew])
        for place, worker in enumerate(crew):
            if worker.pipe not in ready:
                continue
            try:
                number, batch = worker.pipe.recv()
            except (EOFError, OSError):  # or it sent a batch whose tensors were gone with it
                if not worker.dead():
                    raise
                crew[place] = self._replace(worker)
            else:
                done[number], worker.deaths = batch, 0
                del worker.tasks[number]
                self._measure(batch)

    def _measure(self, batch: Batch | Exception) -> None:
        size = bytes_of(batch)
        if size > self.largest and size * self.workers > self.prefetch * 2**30:
            log.warning(
                "a batch has %.2f GiB: one for each of %d workers is more than the %g GiB of data.prefetch_gib",
                size / 2**30,
                self.workers,
                self.prefetch,
            )
        self.largest = max(size, self.largest)

    def _replace(self, dead: "Worker") -> "Worker":
        """A new worker with the same tasks, without the clip that the dead one cannot read."""
        code, place = dead.process.exitcode, dead.reading()
        key = None if place is None else dead.tasks[place[0]][place[1]]
        hung = place is not None and code == HUNG
        cause = f"exit code {code}" if code >= 0 else f"signal {-code}, {signal.strsignal(-code)}"
        cause = f"the decoder or the storage hung for {self.timeout:g} s" if hung else cause
        self.deaths += 1
        where = "" if place is None else f" while reading {self._name(key)}"
        log.warning("a worker of the loader died%s (%s): it is replaced; deaths so far: %d", where, cause, self.deaths)
        new = Worker(self, dead.deaths + (place is None))
        if new.deaths >= DEATHS:
            new.stop()
            raise WorkerError(
                f"a worker of the loader and those that took its place died {DEATHS} times without reading a batch, "
                f"and none was in the middle of a clip ({cause}). Is there enough memory, also in /dev/shm, for "
                f"data.workers={self.workers}?"
            )
        if hung or place in self.suspects:
            reason = cause if hung else f"its worker died twice while reading it ({cause})"
            self.lost[self.dataset.row(key)] = Skipped(self._name(key), reason)
        elif place is not None:
            self.suspects.add(place)
        for number, keys in dead.tasks.items():
            new.give(number, keys)
        return new

    def _name(self, key: Any) -> str:
        return self.dataset.name(self.dataset.row(key))


class Worker:
    """A process that reads batches, as the main process sees it; `deaths` came before it, with no clip to blame."""

    def __init__(self, loader: Loader[Any], deaths: int = 0):
        # Forked from a clean process with the imports done: forking this one, with its threads, can hang.
        context = get_context("forkserver")
        context.set_forkserver_preload([__name__, "recipes.data.clips"])
        self.loader, self.deaths = loader, deaths
        self.tasks: dict[int, Sequence[Any]] = {}
        self.place = context.RawArray("q", [NOTHING, 0])  # what it is reading: the batch, and the position in it
        self.pipe, far_end = context.Pipe()
        arguments = (loader.dataset, loader.join, loader.timeout, far_end, self.place)
        self.process = context.Process(target=work, args=arguments, daemon=True)
        self.process.start()
        far_end.close()  # the worker alone holds it: it closes when the worker dies

    def give(self, number: int, keys: Sequence[Any]) -> None:
        """Sends a batch to read."""
        self.tasks[number] = keys
        lost, row = self.loader.lost, self.loader.dataset.row
        items = [lost.get(row(key), key) for key in keys] if lost else keys
        with suppress(OSError):  # a dead worker is noticed where its batches are awaited
            self.pipe.send((number, items))

    def reading(self) -> tuple[int, int] | None:
        """Batch and position of the clip that it reads, or was reading when it died; None between clips."""
        number, position = self.place
        return (number, position) if number in self.tasks else None

    def dead(self) -> bool:
        """Whether it has ended, or is about to."""
        self.process.join(GRACE)
        return self.process.exitcode is not None

    def stop(self) -> None:
        """Ends it, whatever it is doing."""
        self.pipe.close()
        self.process.terminate()


def work(dataset: Any, join: Callable[[list[Any]], Any], timeout: float, pipe: Connection, place: Any) -> None:
    """Runs in a worker: reads the batches that it is sent, and sends them back."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the main one decides when to stop
    torch.set_num_threads(1)
    tasks: SimpleQueue[tuple[int, list[Any]]] = SimpleQueue()
    Thread(target=_receive, args=(pipe, tasks), daemon=True).start()
    while True:
        number, items = tasks.get()
        try:
            clips = []
            for position, item in enumerate(items):
                place[:] = number, position
                clips.append(item if isinstance(item, Skipped) else _read(dataset, item, timeout))
            place[0] = NOTHING
            batch = join(clips)
        except Exception as error:  # a bug, which the main process raises
            error.add_note(f"in a worker of the loader:\n{traceback.format_exc()}")
            batch = error
        pipe.send((number, batch))


def _receive(pipe: Connection, tasks: SimpleQueue[Any]) -> None:
    """Takes tasks as they come, so that the main process never waits for room in the pipe; ends with the pipe."""
    with suppress(EOFError, OSError):
        while True:
            tasks.put(pipe.recv())
    os._exit(0)


def _read(dataset: Any, key: Any, timeout: float) -> Any:
    """Reads a clip, or dies: the kernel's alarm ends a process whatever its decoder holds."""
    signal.setitimer(signal.ITIMER_REAL, min(max(timeout, 1e-6), LONGEST))
    try:
        return dataset[key]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


class _Calls(Generic[Item, Result]):
    """A function of items as a dataset: a key is (number, name, item), and the row of it (number, name)."""

    def __init__(self, function: Callable[[Item], Result]):
        self.function = function

    def row(self, key: tuple[int, str, Item]) -> tuple[int, str]:
        return key[:2]

    def name(self, row: tuple[int, str]) -> str:
        return row[1]

    def __getitem__(self, key: tuple[int, str, Item]) -> Result | Skipped:
        _, name, item = key
        try:
            return self.function(item)
        except BrokenClip as broken:
            return Skipped(name, broken.reason)


def guarded(
    function: Callable[[Item], Result], items: Iterable[tuple[str, Item]], workers: int = 1, timeout: float = TIMEOUT
) -> Iterator[tuple[Item, Result | Skipped]]:
    """Applies a function to named items in processes of their own, in order, and goes on if one of them dies or hangs.

    Function, items and results must be picklable. An item that is broken, ended its process twice, or hung, gives a
    `Skipped`.
    """
    under_way: deque[Item] = deque()

    def keys() -> Iterator[list[tuple[int, str, Item]]]:
        for number, (name, item) in enumerate(items):
            under_way.append(item)
            yield [(number, name, item)]

    for (result,) in Loader(_Calls(function), keys(), list, workers, timeout):
        yield under_way.popleft(), result


def bytes_of(batch: Any) -> int:
    """The size of the arrays in a batch."""
    if isinstance(batch, torch.Tensor | np.ndarray):
        return batch.nbytes
    if isinstance(batch, bytes):
        return len(batch)
    parts = batch.values() if isinstance(batch, dict) else getattr(batch, "__dict__", {}).values()
    return sum(map(bytes_of, batch if isinstance(batch, list | tuple) else parts))
