"""What becomes of an architecture: exact on the tape, exact by a fallback, or refused."""

import re
import warnings
from typing import NamedTuple

from tests.harmony.third_party.case import Case
from tests.harmony.third_party.numbers import Numbers, of_engine


class Verdict(NamedTuple):
    """How the numbers of ``method="auto"`` came about.

    Attributes:
        engine: ``"tape"``, ``"fallback"`` or ``"refused"``.
        reason: What the warning says, or the error.
        numbers: None where there are none.
    """

    engine: str
    reason: str
    numbers: Numbers | None


def judge(case: Case, *, by_parameter: bool) -> Verdict:
    """Run one step by ``method="auto"``."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            numbers = of_engine(case, "auto", by_parameter=by_parameter)
        except (ValueError, NotImplementedError) as error:
            return Verdict("refused", str(error), None)
    told = [str(w.message) for w in caught]
    fallbacks = [message for message in told if "exact and slow" in message]
    if fallbacks:
        return Verdict("fallback", fallbacks[0], numbers)
    return Verdict("tape", "; ".join(sorted({m for m in told if "closed form" in m})), numbers)


def short(reason: str, limit: int = 240) -> str:
    """The heart of a reason, in one line."""
    line = re.sub(r"\s+", " ", reason)
    line = re.sub(r"encode calls batch normalisation.*", "batch normalisation in training mode", line)
    line = re.sub(r", which uses [^;]*, has no closed form[^;]*", ": its own backward, once for each sample", line)
    return line if len(line) <= limit else line[: limit - 1] + "…"
