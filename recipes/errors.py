"""Errors that a command reports in one line: what people can mend, and what ends a run that was right to begin."""

import signal
from collections.abc import Sequence


class ConfigError(ValueError):
    """A configuration that cannot be run."""


class DataError(ValueError):
    """Data that a run cannot use."""


class Failure(RuntimeError):
    """Work that cannot go on; what is saved of it is whole."""


class Interrupted(KeyboardInterrupt):
    """The work was asked to stop by a signal, and has stopped; the message says how to go on."""

    def __init__(self, number: int, advice: str = "") -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}{advice}")
        self.code = 128 + number  # the exit status that says so


def listing(head: str, sentences: Sequence[str]) -> str:
    """A headline, and a line for each sentence."""
    return "\n".join([head, *(f"  - {sentence}" for sentence in sentences)])
