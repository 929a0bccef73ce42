"""Folders of runs: nothing is overwritten."""

import logging
from pathlib import Path

log = logging.getLogger(__name__)


def make(folder: Path) -> None:
    """Make a folder; one that is there already is moved aside."""
    if folder.exists():
        aside = next(p for i in range(1, 10_000) if not (p := folder.with_name(f"{folder.name}.{i}")).exists())
        folder.rename(aside)
        log.info("%s exists: moved to %s", folder, aside)
    folder.mkdir(parents=True)
