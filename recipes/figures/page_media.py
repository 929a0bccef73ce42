"""The media of a page of clips: some in the page itself, the others in a folder beside it."""

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from recipes.data.skipped import Skipped
from recipes.figures.html import data_url

INLINE_PLAYERS = 100
INLINE_BYTES = 50_000_000  # of media in the page, as they stand there
OURS = re.compile(r"clip-\d+(-poster)?\.(mp4|jpg)")
KINDS = {".mp4": "video/mp4", ".jpg": "image/jpeg"}


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


def report_unreadable(broken: Sequence[Skipped], shown: int) -> None:
    """Print how many clips are left out of a page, and why the first; a ValueError if none is left to show."""
    first = f"the first: {broken[0].id}: {broken[0].reason}" if broken else ""
    if not shown:
        raise ValueError(f"none of the {len(broken)} clips drawn can be read; {first}")
    if broken:
        print(f"{len(broken)} of the clips drawn cannot be read and are left out, {first}")
