"""The page of a gallery: one HTML file; media that it may not hold go into a folder beside it."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from recipes.data.skipped import Skipped
from recipes.figures.gallery.media import Row
from recipes.figures.gallery.sample import GalleryKeys, Sample
from recipes.figures.gallery.words import FEWEST, THRESHOLD, Caption, is_aligned, most_aligned, share_aligned
from recipes.figures.html import data_url, render

INLINE_PLAYERS = 100
INLINE_BYTES = 50_000_000  # of media in the page, as they stand there
PER_PAGE = 10  # clips of each group shown at a time
FREQUENT = 5  # words named that are aligned most often
OURS = re.compile(r"clip-\d+(-poster)?\.(mp4|jpg)")
KINDS = {".mp4": "video/mp4", ".jpg": "image/jpeg"}


@dataclass(frozen=True)
class Card:
    """A clip on the page."""

    row: Row
    caption: Caption
    outline: list[float]  # its loudness
    ratio: float  # width by height of its strip of key frames
    addresses: dict[str, str]  # of its media, {".mp4", ".jpg", "-poster.jpg"}


class Media:
    """The media of a page: the first clips go into the page itself, the others into a folder beside it."""

    def __init__(self, page: Path, inline_players: int = INLINE_PLAYERS, inline_bytes: int = INLINE_BYTES) -> None:
        self.folder = page.with_name(f"{page.stem}_files")
        self.players_left, self.bytes_left = inline_players, inline_bytes
        self.written: set[str] = set()

    def add(self, clip: int, files: dict[str, bytes]) -> dict[str, str]:
        """Place the files of a clip, {suffix: bytes}; returns their addresses, seen from the page."""
        urls = {suffix: data_url(data, KINDS[suffix[-4:]]) for suffix, data in files.items()}
        size = sum(map(len, urls.values()))
        if self.players_left and size <= self.bytes_left:
            self.players_left, self.bytes_left = self.players_left - 1, self.bytes_left - size
            return urls
        self.folder.mkdir(exist_ok=True)
        for suffix, data in files.items():
            (self.folder / f"clip-{clip}{suffix}").write_bytes(data)
            self.written.add(f"clip-{clip}{suffix}")
        return {suffix: f"{quote(self.folder.name)}/clip-{clip}{suffix}" for suffix in files}

    def remove_old(self) -> None:
        """Remove media of an earlier page that this one does not use, and the folder if it is empty then."""
        if not self.folder.is_dir():
            return
        for file in self.folder.iterdir():
            if file.name not in self.written and OURS.fullmatch(file.name):
                file.unlink()
        if not any(self.folder.iterdir()):
            self.folder.rmdir()


def page(cards: dict[str, list[Card]], sample: Sample, keys: GalleryKeys, words: int, broken: Sequence[Skipped]) -> str:
    """The page as HTML; ``words`` of a caption are those that the model reads."""
    captions = {group: [card.caption for card in clips] for group, clips in cards.items()}
    videos = {group: [card.row.video for card in clips] for group, clips in cards.items()}
    references = sorted(caption.references for group in captions.values() for caption in group)
    fewest, most = references[0], references[-1]
    return render(
        "gallery.html.j2",
        cards=cards,
        sample=sample,
        percent=f"{100 * keys.share:g}",
        seed=keys.seed,
        words=words,
        threshold=THRESHOLD,
        is_aligned=is_aligned,
        references=fewest if fewest == most else f"{fewest} to {most}",
        enough=fewest >= FEWEST,
        shares={group: share_aligned(captions[group], videos[group], keys.seed) for group in cards},
        frequent={group: most_aligned(captions[group], FREQUENT) for group in cards},
        broken=len(broken),
        reasons=Counter(clip.reason for clip in broken).most_common(5),
        per_page=PER_PAGE,
    )
