"""What ends a training before its time: steps that cannot be taken, and a checkpoint that cannot be written."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from recipes.training.start import TrainingError
from recipes.training.step import StepResult

log = logging.getLogger(__name__)


@dataclass
class Patience:
    """Ends a training when ``most`` steps in a row could not be taken; ``advice`` are sentences on what to look at."""

    most: int
    advice: str
    in_a_row: int = 0

    def count(self, result: StepResult, step: int) -> None:
        """Count a step; ``step`` is how many there were with it.

        Raises:
            TrainingError: It is the last that may fail.
        """
        self.in_a_row = 0 if result.taken else self.in_a_row + 1
        if self.in_a_row >= self.most:
            raise TrainingError(
                f"{self.in_a_row} steps in a row could not be taken, the last one because {result.reason}; "
                f"stopped at step {step}. {self.advice}"
            )


def attempt(save: Callable[[], None], required: bool) -> bool:
    """Write a checkpoint; returns whether that worked. Training goes on without one that is not ``required``.

    Raises:
        TrainingError: It is, and could not be written.
    """
    try:
        save()
    except OSError as error:
        if required:
            raise TrainingError(f"{error}. The checkpoint before is whole: free space, then --resume") from error
        log.error("%s; training goes on, and the next one is tried", error)
        return False
    return True
