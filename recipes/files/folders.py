"""Folders of runs: nothing is overwritten, and nothing but an earlier run is moved aside."""

import logging
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
