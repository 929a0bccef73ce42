"""All formats of annotations, and which of them a file has."""

from pathlib import Path

from recipes.data.encoding import read_lines
from recipes.errors import listing
from recipes.scoring.truth import avid, corpus, htm_align, vggsounder
from recipes.scoring.truth.fact import PAIRS, Fact, Format, Pair

FORMATS = (corpus.FORMAT, htm_align.FORMAT, vggsounder.FORMAT, avid.FORMAT)


def read_truth(path: Path) -> dict[Pair, list[Fact]]:
    """The facts about each pair that an annotation speaks of.

    Args:
        path: A file in one of `FORMATS`, recognised by its first line, whatever its name.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It has no such format, or is not as the format says.
    """
    facts = list(_format_of(path).read(path))
    spoken_of = {pair: [fact for fact in facts if fact.pair == pair] for pair in PAIRS}
    return {pair: about for pair, about in spoken_of.items() if about}


def _format_of(path: Path) -> Format:
    line = next((line for _, line in read_lines(path) if line.strip()), "")
    for form in FORMATS:
        if form.recognises(line):
            return form
    expected = [f"{form.name}: {form.content}" for form in FORMATS]
    raise ValueError(listing(f"{path}: begins with {line.strip()[:60]!r}; expected one of", expected))
