"""Folders: of runs, where nothing is overwritten; and whole or absent, whatever crashes while they are written."""

import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

log = logging.getLogger(__name__)


def make(folder: Path, mark: str = "config.yaml") -> None:
    """Make a folder; an earlier one of the same kind is moved aside.

    Raises:
        FileExistsError: It is of another kind; see `check`.
    """
    check(folder, mark)
    if folder.exists():
        aside = next(p for i in range(1, 10_000) if not (p := folder.with_name(f"{folder.name}.{i}")).exists())
        folder.rename(aside)
        log.info("%s exists: moved to %s", folder, aside)
    folder.mkdir(parents=True)


def check(folder: Path, mark: str = "config.yaml", reads: Iterable[str] = ()) -> None:
    """Check that a folder can be made, and whatever has its name can be moved aside.

    Args:
        folder: To make.
        mark: Pattern of a file in every folder of the kind that may be moved aside.
        reads: Files and folders that are about to be read.

    Raises:
        FileExistsError: Something else has its name, or it holds what is about to be read.
    """
    place = folder.resolve()
    for path in reads:
        if Path(path).resolve().is_relative_to(place):
            raise FileExistsError(f"{folder} would be moved aside, with {path} in it, which is to be read")
    if folder.exists() and not (folder.is_dir() and (any(folder.glob(mark)) or not any(folder.iterdir()))):
        raise FileExistsError(f"{folder} exists and cannot be moved aside: it has no {mark}")


def unfinished(folder: Path) -> Path:
    """What a folder is called while it is written, see `begin` and `finish`."""
    return folder.with_name(f".{folder.name}.tmp")


def begin(folder: Path) -> None:
    """Make the `unfinished` folder; what a crash has left of an earlier one is removed."""
    for left_over in (unfinished(folder), _before(folder)):
        shutil.rmtree(left_over, ignore_errors=True)
    unfinished(folder).mkdir(parents=True)


def finish(folder: Path) -> None:
    """Give the `unfinished` folder its name; the one before is beside it until then."""
    if folder.exists():
        os.replace(folder, _before(folder))
    os.replace(unfinished(folder), folder)
    shutil.rmtree(_before(folder), ignore_errors=True)


def _before(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")
