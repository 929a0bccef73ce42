"""A lock on the name of a file or folder: its holder may make, move and remove it. It ends with the process."""

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)


class Held(OSError):
    """Another process has the lock; the message names it."""


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Hold the lock on a file or folder, which need not exist. The lock is the file .NAME.lock beside it.

    Raises:
        Held: Another process has it.
        OSError: The folder beside cannot be written to.
    """
    place = path.absolute().parent
    made = not place.exists()
    place.mkdir(parents=True, exist_ok=True)
    file = place / f".{path.name}.lock"
    descriptor = _open(file, path)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(descriptor)
        if made:
            with suppress(OSError):  # there is something in it now
                place.rmdir()


def _open(file: Path, path: Path) -> int:
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 1000).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise Held(f"{path} is in use by {holder}: wait for it, or end it, or choose another name") from None
        except OSError as error:
            log.warning("%s: this file system has no locks (%s): start nothing twice", file.parent, error)
            return descriptor
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(file), os.fstat(descriptor)):  # else its last holder has just removed it
                os.truncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} of {socket.gethostname()}".encode())
                return descriptor
        os.close(descriptor)
