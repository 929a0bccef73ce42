"""Files that survive a crash: whole or absent, flushed to the disk, and known by their digest."""

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

KINDS = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all.

    Yields:
        Another name in the same folder, to write to. It becomes ``path`` at the end; after an error it is removed.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush(path.parent)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_place(path: Path) -> None:
    """Raise an OSError if no file can be written at a path; folders that are not there yet could be made."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "expected the name of a file, this is a folder", str(path))
    folder = next(parent for parent in path.absolute().parents if parent.exists() or parent.is_symlink())
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{path} cannot be written, this is no folder", str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"{path} cannot be written, this folder is not yours", str(folder))


def flush(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def regular(path: str | Path) -> Path:
    """The path of a regular file, links followed: to open anything else might never end.

    Raises:
        FileNotFoundError: There is nothing at this path.
        OSError: Something else is, or it is no path at all.
    """
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:  # a NUL, or half a surrogate pair
        raise OSError(errno.EINVAL, f"not the name of a file ({error})", repr(str(path))) from error
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "device")
        raise OSError(errno.EINVAL, f"a {kind}, not a regular file", str(path))
    return Path(path)


def digest(pieces: Iterable[bytes]) -> str:
    """SHA-256 of pieces, one after the other."""
    hashed = hashlib.sha256()
    for piece in pieces:
        hashed.update(piece)
    return hashed.hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
