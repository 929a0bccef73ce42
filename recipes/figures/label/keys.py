"""The keys of the labelling page."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from recipes.figures.player import LONGEST
from recipes.keys import key


@dataclass
class LabelKeys:
    """Which clips to label."""

    data: str | None = key(None, "manifest or folder of the clips; with scores=, it says what is held out, and groups")
    scores: Path | None = key(None, "table of recipes.score: label clips of it, in their windows")
    out: Path = key(Path("label.html"), "the page")
    count: int = key(256, "clips on the page", least=1, most=10_000)
    choose: Literal["random", "spread"] = key(
        "random", "of all clips, or one from each of count equal parts by a figure"
    )
    by: str | None = key(None, "column of scores= for choose=spread; null: cosine, or the first figure that it has")
    seed: int = key(0, "of the draw", least=0)
    split: str | None = key(None, "of data=; null: what a run would train on, nothing that it would hold out")
    exclude: list[Path] = key([], "trusted.jsonl or answers.jsonl of earlier rounds: their clips do not come again")
    seconds: float | None = key(
        None, "of a clip, about its middle; null: as scored, or its text's time, 1 to 5", more_than=0, most=LONGEST
    )
    workers: int = key(1, "processes that read clips", least=0, most=1024)

    def problems(self) -> Iterator[str]:
        """Keys that do not fit together."""
        if self.out.suffix.lower() not in (".html", ".htm"):
            yield f"out={self.out}: expected the page's name to end in .html"
        if self.data is None and self.scores is None:
            yield "data= and scores= are missing: a manifest, or a table of recipes.score, names the clips to label"
        if self.scores is None and self.choose == "spread":
            yield "choose=spread needs scores=, a table of recipes.score"
        if self.by is not None and self.choose != "spread":
            yield f"by={self.by} needs choose=spread"
        if self.split is not None and self.data is None:
            yield f"split={self.split} needs data=: a table of scores does not name the split of a clip"
