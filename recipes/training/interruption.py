"""A run that is asked to stop finishes its step first."""

import signal


class Interruption:
    """While open, SIGINT and SIGTERM ask the loop to stop after the step at hand."""

    asked = False

    def __enter__(self) -> "Interruption":
        self.before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, *_: object) -> None:
        self.asked = True
