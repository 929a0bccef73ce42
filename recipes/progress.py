"""One progress bar for all: lively in a terminal, a line every few seconds in a log."""

import sys
from contextlib import suppress
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 15


class Stderr:
    """Standard error, where what cannot be written is left out: a full disk under a log ends no work."""

    def write(self, text: str) -> None:
        with suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


STDERR = Stderr()


def progress_bar(**keywords: Any) -> "tqdm[Any]":
    """A tqdm bar that does not flood a log file."""
    quiet = {} if sys.stderr.isatty() else {"mininterval": SECONDS_BETWEEN_LINES, "miniters": 1}
    return tqdm(dynamic_ncols=True, file=STDERR, **quiet, **keywords)
