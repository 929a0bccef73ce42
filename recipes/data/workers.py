"""Processes that read batches. One that hangs or dies is replaced, and what it had to do is done again.

PyTorch's DataLoader ends the run with its first dead worker. Here every worker has a pipe of its own, so that the end
of one is seen at once, whatever it was in the middle of, and does not disturb the others.
"""

import faulthandler
import logging
import os
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import count, islice
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from threading import Thread
from typing import Any, Generic, Protocol, TextIO, TypeVar

import torch
from torch.multiprocessing import get_context  # its pickler lets tensors cross in shared memory

from recipes.data.clips import Clip, Skipped

AHEAD = 4  # batches under way, for each worker
DEATHS = 5  # of one worker and its successors, without a batch between them, that are too many
GRACE = 5  # seconds for a process that has closed its pipe to be gone
HUNG = 1  # the exit code of a process that `faulthandler` ends; whatever Python raises is sent to the main process
NOTHING = -1  # in place of the number of the batch that is read

Batch = TypeVar("Batch")
log = logging.getLogger(__name__)


class WorkerError(RuntimeError):
    """Workers that die whatever they read."""


class Clips(Protocol):
    """A dataset of clips of an index; the type of its keys is its own."""

    index: Any

    def row(self, key: Any) -> int:
        """The row of the index that a key reads."""

    def __getitem__(self, key: Any) -> Clip | Skipped: ...


class Loader(Generic[Batch]):
    """Iterates over batches in their order, which does not depend on workers nor on their deaths.

    A clip on which a worker hangs becomes a `Skipped` at once. One on which a worker dies is read again, as that may
    have been an accident, such as a lack of memory; if a worker dies on it once more, it is skipped. From then on all
    clips of its row are. Without workers nothing is guarded: a clip that hangs, hangs this process.
    """

    def __init__(
        self, dataset: Clips, batches: Iterable[Sequence[Any]], join: Callable[[list[Clip | Skipped]], Batch],
        workers: int, timeout: float,
    ):  # fmt: skip
        """
        Args:
            dataset: the clips.
            batches: the keys of each batch; endless ones are read as they are needed.
            join: what makes a batch of its clips.
            workers: processes that read; 0 reads in this one.
            timeout: seconds that a worker may read one clip before it counts as hung.
        """
        self.dataset, self.batches, self.join, self.workers, self.timeout = dataset, batches, join, workers, timeout
        self.deaths = 0
        self.suspects: set[Any] = set()  # keys on which a worker has died
        self.lost: dict[int, Skipped] = {}  # rows that are not read any more

    def __iter__(self) -> Iterator[Batch]:
        """Raises: WorkerError, where a worker and its successors die before they have read a single batch."""
        if not self.workers:
            yield from (self.join([self.dataset[key] for key in keys]) for keys in self.batches)
            return
        tasks, done = enumerate(self.batches), {}
        crew = [Worker(self) for _ in range(self.workers)]
        try:
            self._give(crew, islice(tasks, AHEAD * self.workers))
            for number in count():
                while number not in done:
                    if not any(worker.tasks for worker in crew):
                        return
                    self._collect(crew, done)
                self._give(crew, islice(tasks, 1))
                batch = done.pop(number)
                if isinstance(batch, Exception):
                    raise batch
                yield batch
        finally:
            for worker in crew:
                worker.stop()

    def _give(self, crew: list["Worker"], tasks: Iterable[tuple[int, Sequence[Any]]]) -> None:
        for number, keys in tasks:
            crew[number % len(crew)].give(number, keys)

    def _collect(self, crew: list["Worker"], done: dict[int, Batch | Exception]) -> None:
        """Wait until a worker has read a batch, or is dead."""
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

    def _replace(self, dead: "Worker") -> "Worker":
        """A new worker with the same tasks, less the clip that the dead one cannot read."""
        code, key = dead.process.exitcode, dead.reading()
        cause = f"exit code {code}" if code >= 0 else f"signal {-code}, {signal.strsignal(-code)}"
        if key is not None and code == HUNG:
            cause = f"the decoder or the storage hung for {self.timeout:g} s"
        self.deaths += 1
        where = "" if key is None else f" while reading {self._id(key)}"
        log.warning("a worker of the loader died%s (%s): it is replaced; deaths so far: %d", where, cause, self.deaths)
        if dead.deaths + 1 >= DEATHS:
            raise WorkerError(
                f"a worker of the loader and those that took its place died {DEATHS} times without reading a batch, "
                f"the last one{where} ({cause}). Can the videos be reached, and is there enough memory, also in "
                f"/dev/shm, for data.workers={self.workers}?"
            )
        if key is not None:
            self._blame(key, cause if code == HUNG else "its worker died twice while reading it", at_once=code == HUNG)
        new = Worker(self, dead.deaths + 1)
        for number, keys in dead.tasks.items():
            new.give(number, keys)
        return new

    def _blame(self, key: Any, reason: str, at_once: bool) -> None:
        if at_once or key in self.suspects:
            self.lost[self.dataset.row(key)] = Skipped(self._id(key), reason)
        self.suspects.add(key)

    def _id(self, key: Any) -> str:
        return self.dataset.index[self.dataset.row(key)]["id"]


class Worker:
    """A process that reads batches, as the main process sees it.

    Attributes:
        pipe: To it and from it.
        tasks: The keys of the batches that it has still to read, by number, in their order.
        deaths: How many workers have died in its place since the last batch.
    """

    def __init__(self, loader: Loader[Any], deaths: int = 0):
        """Start one for a loader."""
        # Forked from a clean process with the imports done: forking this one, with its threads, can hang.
        context = get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self.loader, self.deaths = loader, deaths
        self.tasks: dict[int, Sequence[Any]] = {}
        self.place = context.RawArray("q", [NOTHING, 0])  # what it is reading: the batch, and the position in it
        self.pipe, far_end = context.Pipe()
        arguments = (loader.dataset, loader.join, loader.timeout, far_end, self.place)
        self.process = context.Process(target=work, args=arguments, daemon=True)
        self.process.start()
        far_end.close()  # the worker alone holds it: it closes when the worker dies

    def give(self, number: int, keys: Sequence[Any]) -> None:
        """Have it read a batch."""
        self.tasks[number] = keys
        lost, row = self.loader.lost, self.loader.dataset.row
        items = [lost.get(row(key), key) for key in keys] if lost else keys
        with suppress(OSError):  # it is dead, which is noticed where its batches are awaited
            self.pipe.send((number, items))

    def reading(self) -> Any:
        """The key of the clip that it reads, or read when it died; None in between."""
        number, position = self.place
        return self.tasks[number][position] if number in self.tasks else None

    def dead(self) -> bool:
        """Whether it has ended, or is just about to."""
        self.process.join(GRACE)
        return self.process.exitcode is not None

    def stop(self) -> None:
        """End it, whatever it is doing."""
        self.pipe.close()
        self.process.terminate()


def work(
    dataset: Clips, join: Callable[[list[Clip | Skipped]], Any], timeout: float, pipe: Connection, place: Any
) -> None:
    """What a worker does: read the batches that it is given, and send them back."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the main one decides when to stop
    torch.set_num_threads(1)
    tasks: SimpleQueue[tuple[int, list[Any]]] = SimpleQueue()
    Thread(target=_receive, args=(pipe, tasks), daemon=True).start()
    with open(os.devnull, "w") as nowhere:
        while True:
            number, items = tasks.get()
            try:
                clips = []
                for position, item in enumerate(items):
                    place[:] = number, position
                    clips.append(item if isinstance(item, Skipped) else _read(dataset, item, timeout, nowhere))
                place[0] = NOTHING
                batch = join(clips)
            except Exception as error:  # a mistake in the program: the main process raises it
                error.add_note(f"in a worker of the loader:\n{traceback.format_exc()}")
                batch = error
            pipe.send((number, batch))


def _receive(pipe: Connection, tasks: SimpleQueue[Any]) -> None:
    """Take tasks as they come, so that the main process never waits for room in the pipe; without it, end at once."""
    with suppress(EOFError, OSError):
        while True:
            tasks.put(pipe.recv())
    os._exit(0)


def _read(dataset: Clips, key: Any, timeout: float, nowhere: TextIO) -> Clip | Skipped:
    """Read a clip, or die: the clock is a thread in C, which needs no lock that a stuck decoder may hold."""
    faulthandler.dump_traceback_later(timeout, exit=True, file=nowhere)
    try:
        return dataset[key]
    finally:
        faulthandler.cancel_dump_traceback_later()
