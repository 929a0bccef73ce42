"""The table of what is expected of each architecture: ``expected.tsv``, one line for each."""

from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).with_name("expected.tsv")


class Expected(NamedTuple):
    """One line.

    Attributes:
        package: Where the class is from.
        name: What the list of the package calls it.
        eval: ``tape``, ``fallback`` or ``refused`` in eval mode; ``-`` where the class itself cannot do that.
        train: The same in training mode, without dropout.
        float64: ``yes``, or ``no`` where the class computes in float32 whatever its parameters are.
    """

    package: str
    name: str
    eval: str
    train: str
    float64: str


def expected() -> list[Expected]:
    """All lines, in order."""
    header, *lines = TABLE.read_text().splitlines()
    if tuple(header.split("\t")) != Expected._fields:
        raise ValueError(f"{TABLE.name} has the columns {header!r}; expected {', '.join(Expected._fields)}.")
    return [Expected(*line.split("\t")) for line in lines]
