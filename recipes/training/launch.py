"""A launch by torchrun: a name for each start of its processes, and whether a run belongs to this launch.

Nothing in the environment tells one start from another on all nodes: TORCHELASTIC_RESTART_COUNT is each agent's own.
"""

import math
import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

from torch.distributed import Store

POLL = 0.05  # seconds between two looks
MARK = "launch"  # file in a run's folder: the names of the launch that it belongs to
NAME = "name of the launch"  # key in the store


def meeting(store: Store, rank: int, world: int, patience: timedelta) -> str:
    """A name that the processes of one start agree on, and that no earlier start has used.

    torchrun keeps one store over its restarts: by the same names, a process finds addresses of those that died. So
    every process leaves a name of its own, and the first, which is alive when it reads it, answers with the name of
    the meeting. It goes on until all have come: a name may be that of a process that has died since.

    Raises:
        RuntimeError: Some did not come in time.
    """
    own = uuid4().hex
    if rank > 0:
        store.set(f"joining {rank}", own)
        wait_for(store, f"meeting of {own}", patience)
        name = store.get(f"meeting of {own}").decode()
        store.set(f"{name} {rank}", "here")
        return name
    missing = list(range(1, world))

    def all_came() -> bool:
        missing[:] = [other for other in missing if not store.check([f"{own} {other}"])]
        for other in missing:
            if store.check([f"joining {other}"]):
                store.set(f"meeting of {store.get(f'joining {other}').decode()}", own)
        return not missing

    if not _came(all_came, patience.total_seconds()):
        raise RuntimeError(f"processes {missing} of {world} did not come within {patience}")
    return own


def wait_for(store: Store, key: str, patience: timedelta | None = None) -> None:
    """Wait for a key; a RuntimeError where it does not come."""
    seconds = math.inf if patience is None else patience.total_seconds()
    if not _came(lambda: store.check([key]), seconds):
        raise RuntimeError(f"the first process did not answer within {patience}")


def _came(arrived: Callable[[], bool], patience: float) -> bool:
    """Whether something comes within so many seconds. Naps are short: Python handles signals only between calls."""
    deadline = time.monotonic() + patience
    while not arrived():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL)
    return True


def name_of(store: Store) -> str:
    """The name of the launch that a store belongs to; a store lives as long as its launch."""
    return store.compare_set(NAME, "", uuid4().hex).decode()


def agent() -> str:
    """The name of torchrun's agent on this node, the parent of its processes; "" without torchrun."""
    run, parent = os.environ.get("TORCHELASTIC_RUN_ID"), os.getppid()
    if run is None:
        return ""
    stat = Path(f"/proc/{parent}/stat")  # numbers of processes come again, with another time
    began = stat.read_text().rpartition(")")[2].split()[19] if stat.is_file() else ""
    return f"{run}, process {parent} of {socket.gethostname()}, begun {began}"


def shared(folder: Path, names: list[str], patience: float = 60.0) -> bool:
    """Whether this process sees the mark of the first one; shared file systems may take some seconds."""
    return _came(lambda: signed(folder, names), patience)


def sign(folder: Path, names: list[str]) -> None:
    """Mark a run's folder with the names of its launch."""
    (folder / MARK).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def signed(folder: Path, names: list[str]) -> bool:
    """Whether this launch started or resumed a run: the mark has its store, or an agent that still lives."""
    mark = folder / MARK
    return mark.is_file() and not set(names).isdisjoint(mark.read_text(encoding="utf-8").splitlines())
