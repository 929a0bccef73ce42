"""The page of a gallery: one HTML file; what it may not hold goes into a folder beside it."""

import base64
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from recipes.data.clips import Skipped
from recipes.figures.gallery.alignment import FEWEST, THRESHOLD
from recipes.figures.gallery.captions import Caption, most_aligned, share_aligned
from recipes.figures.gallery.media import Shown, side_by_side
from recipes.figures.gallery.sample import BINS, Row, Sample
from recipes.files import write_atomically

GROUPS = ("top", "bottom")
INLINE_PLAYERS = 100
INLINE_BYTES = 50_000_000  # of media in the page, as they stand there
PER_PAGE = 10  # clips of each group shown at a time
FREQUENT = 5  # words named that are aligned most often
OURS = re.compile(r"clip-\d+(-poster)?\.(mp4|jpg)")


@dataclass(frozen=True)
class Card:
    """A clip as the gallery shows it."""

    group: str
    row: Row
    shown: Shown
    caption: Caption


class Page:
    """Takes cards one by one and writes their media at once, so that memory holds only what is inlined."""

    def __init__(self, path: Path, inline_players: int = INLINE_PLAYERS, inline_bytes: int = INLINE_BYTES) -> None:
        """
        Args:
            path: The page.
            inline_players, inline_bytes: How much of the media it may hold; what comes first is inlined.
        """
        self.path, self.folder = path, path.with_name(f"{path.stem}_files")
        self.players_left, self.bytes_left = inline_players, inline_bytes
        self.inlined: dict[str, str] = {}  # base64 by file name
        self.files: set[str] = set()
        self.rows: list[dict[str, Any]] = []
        self.captions: dict[str, list[tuple[Caption, str]]] = {group: [] for group in GROUPS}

    def add(self, card: Card) -> None:
        """Take a card."""
        row, caption = card.row, card.caption
        height, width = side_by_side(card.shown.frames).shape[:2]
        self._place({f"clip-{row.clip}{suffix}": data for suffix, data in card.shown.files.items()})
        self.captions[card.group].append((caption, row.video))
        self.rows.append(
            {
                "group": card.group, "clip": row.clip, "id": row.id, "start": round(row.start, 2),
                "cosine": round(row.cosine, 4), "aligned": caption.aligned, "outline": card.shown.outline,
                "ratio": round(width / height, 3),
                "pieces": [[text, p if p is None else round(p, 4)] for text, p in caption.pieces],
            }
        )  # fmt: skip

    def write(self, sample: Sample, share: float, seed: int, words: int, broken: list[Skipped]) -> None:
        """Write the page, whole or not at all, and remove media of an earlier one that it does not use.

        Args:
            sample: Where the cards are from.
            share, seed: How they were drawn.
            words: How many words of a caption the model reads.
            broken: What could not be read.
        """
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
        )
        judged = {group: list(zip(*cards, strict=True)) or [(), ()] for group, cards in self.captions.items()}
        numbers = [caption.references for captions, _ in judged.values() for caption in captions]
        fewest = min(numbers)
        page = environment.get_template("gallery.html.j2").render(
            sample=sample, share=share, seed=seed, rows=self.rows, inlined=self.inlined, folder=quote(self.folder.name),
            per_page=PER_PAGE, threshold=THRESHOLD, words=words,
            references=fewest if fewest == max(numbers) else f"{fewest} to {max(numbers)}", enough=fewest >= FEWEST,
            shares={group: share_aligned(*columns, seed) for group, columns in judged.items()},
            frequent={group: most_aligned(columns[0], FREQUENT) for group, columns in judged.items()},
            counts={group: len(columns[0]) for group, columns in judged.items()},
            broken=len(broken), reasons=Counter(clip.reason for clip in broken).most_common(5),
            bars=[count / max(sample.histogram) for count in sample.histogram], bins=BINS,
        )  # fmt: skip
        write_atomically(self.path, page)
        for file in self.folder.glob("clip-*") if self.folder.is_dir() else ():
            if file.name not in self.files and OURS.fullmatch(file.name):
                file.unlink()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _place(self, files: dict[str, bytes]) -> None:
        encoded = {name: base64.b64encode(data).decode() for name, data in files.items()}
        size = sum(map(len, encoded.values()))
        if self.players_left and size <= self.bytes_left:
            self.players_left, self.bytes_left = self.players_left - 1, self.bytes_left - size
            self.inlined |= encoded
            return
        self.folder.mkdir(exist_ok=True)
        for name, data in files.items():
            (self.folder / name).write_bytes(data)
        self.files |= files.keys()
