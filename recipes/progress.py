"""One progress bar for all: lively in a terminal, a line every few seconds in a log."""

import sys
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 15


def progress_bar(**keywords: Any) -> "tqdm[Any]":
    """A tqdm bar that does not flood a log file."""
    quiet = {} if sys.stderr.isatty() else {"mininterval": SECONDS_BETWEEN_LINES, "miniters": 1}
    return tqdm(dynamic_ncols=True, **quiet, **keywords)
