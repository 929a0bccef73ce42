"""Keys of the gallery."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recipes.keys import key
from recipes.restore import RestoreKeys


@dataclass
class GalleryKeys(RestoreKeys):
    """What to show of which table."""

    scores: Path = key(meaning="table of recipes.score")
    out: Path = key(Path("gallery.html"), "the page; the sheet is NAME.png beside it")
    share: float = key(0.05, "of the clips with a cosine, at each end", more_than=0, most=0.5)
    count: int = key(50, "clips drawn from each end", least=1)
    seed: int = key(0, "of the draw", least=0)
    checkpoint: Path | None = key(None, "of the model that tests the words; null: the one of the scores")

    def problems(self) -> Iterator[str]:
        """A page that no browser would open."""
        if self.out.suffix.lower() not in (".html", ".htm"):
            yield f"out={self.out}: expected the page's name to end in .html"
