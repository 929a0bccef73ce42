"""Stop in order when a signal asks for it: at once where nothing is lost, else after the current step."""

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from recipes.errors import Interrupted

T = TypeVar("T")


class Interruption:
    """While open, SIGINT and SIGTERM raise `Interrupted`; inside `deferred` they are only noted."""

    def __init__(self, advice: str = "") -> None:
        self.asked = 0  # the signal that came
        self.advice = advice  # how to go on after a signal; the end of a sentence
        self._raises = True

    def __enter__(self) -> "Interruption":
        self.before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal sets `asked` and does nothing else."""
        before, self._raises = self._raises, False
        try:
            yield
        finally:
            self._raises = before

    def awaited(self, items: Iterable[T], last: T) -> Iterator[T]:
        """Items, one by one; a signal ends the wait for an item, and ``last`` takes its place."""
        source = iter(items)
        while True:
            before = self._raises
            try:
                self._raises = True
                item = last if self.asked else next(source)
            except Interrupted:
                item = last
            except StopIteration:
                return
            finally:
                self._raises = before
            yield item

    def stop(self, number: int = 0) -> None:
        """Raise `Interrupted` if a signal came to this process, or one of this number to another."""
        if number or self.asked:
            raise Interrupted(number or self.asked, self.advice)

    def _note(self, number: int, _: object) -> None:
        self.asked = number
        if self._raises:
            self.stop()
