"""One case: damage an input, use it, judge the outcome."""

import logging
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import recipes
from recipes.data.decode import BrokenClip
from recipes.errors import ConfigError, DataError, Failure
from recipes.research.fuzz.kinds import KINDS

OWN = str(Path(recipes.__file__).parent)
REFUSALS = (ConfigError, DataError, Failure)


@dataclass(frozen=True)
class Case:
    """A case: the name of its kind, its number, and the seed of all randomness together with the number."""

    kind: str
    number: int
    seed: int

    @property
    def command(self) -> str:
        return f"python -m recipes.research.fuzz what=[{self.kind}] only={self.number} seed={self.seed}"


def run(case: Case, folder: Path, raises: bool = False) -> str:
    """Try a case on the inputs in a folder: "works", "skipped: ...", "refused: ..." or "failed: ..."."""
    rng = np.random.default_rng([case.seed, case.number])
    try:
        with TemporaryDirectory(prefix="case-") as scratch, _silence():
            KINDS[case.kind].use(folder / case.kind, Path(scratch), rng)
    except BrokenClip as error:
        return f"skipped: {error.reason}"
    except Exception as error:
        if isinstance(error, REFUSALS) or (isinstance(error, ValueError | OSError) and _deliberate(error)):
            return f"refused: {error}"
        if raises:  # for its traceback
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"failed: {type(error).__name__}: {error!s:.200} ({Path(last.filename).name}, line {last.lineno})"
    return "works"


@contextmanager
def _silence() -> Iterator[None]:
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


def _deliberate(error: Exception) -> bool:
    """Whether this project raised the error itself, in its own words."""
    return traceback.extract_tb(error.__traceback__)[-1].filename.startswith(OWN)
