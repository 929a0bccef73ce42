"""One case: damage an input, use it, judge what comes."""

import logging
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import recipes
from recipes.data.decode import BrokenClip
from recipes.data.workers import WorkerError
from recipes.errors import ConfigError, DataError

OWN = str(Path(recipes.__file__).parent)
REFUSALS = (ConfigError, DataError, WorkerError)


@dataclass(frozen=True)
class Case:
    """A case by its number.

    Attributes:
        kind: A name of `KINDS`.
        number: Its number.
        seed: Of all randomness, together with the number.
    """

    kind: str
    number: int
    seed: int

    @property
    def command(self) -> str:
        """What repeats it."""
        return f"python -m recipes.research.fuzz --what {self.kind} --only {self.number} --seed {self.seed}"


def run(case: Case, folder: Path, raises: bool = False) -> str:
    """Try a case.

    Args:
        case: The case.
        folder: Where the inputs of each kind are.
        raises: Raise what is no refusal, for its traceback.

    Returns:
        "works", "skipped: ...", "refused: ..." or "failed: ...".
    """
    from recipes.research.fuzz.kinds import KINDS  # which need what decodes, loads and restores

    rng = np.random.default_rng([case.seed, case.number])
    with TemporaryDirectory(prefix="case-") as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            KINDS[case.kind].use(folder / case.kind, Path(scratch), rng)
        except BrokenClip as error:
            return f"skipped: {error.reason}"
        except REFUSALS as error:
            return f"refused: {error}"
        except (ValueError, OSError) as error:
            if _deliberate(error):
                return f"refused: {error}"
            if raises:
                raise
            return _failed(error)
        except Exception as error:
            if raises:
                raise
            return _failed(error)
        finally:
            logging.disable(before)
    return "works"


def _deliberate(error: Exception) -> bool:
    """Whether this project raised the error itself, with its own words."""
    return traceback.extract_tb(error.__traceback__)[-1].filename.startswith(OWN)


def _failed(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"failed: {type(error).__name__}: {error!s:.200} ({Path(last.filename).name}, line {last.lineno})"
