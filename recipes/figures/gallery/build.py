"""Builds a gallery: draws clips, cuts them out of their videos, tests their words, writes the page and the sheet."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from recipes.data.clips import Skipped
from recipes.data.workers import guarded
from recipes.figures.gallery import media
from recipes.figures.gallery.captions import References, judge
from recipes.figures.gallery.page import GROUPS, Card, Page
from recipes.figures.gallery.sample import Row, Sample, draw
from recipes.figures.gallery.sheet import ROWS, sheet
from recipes.figures.gallery.space import Space, load_space
from recipes.progress import progress_bar

REFERENCES = 256  # windows that words are tested against, those of a clip's own video among them, which do not count
CLIPS_AT_ONCE = 32


def build(
    scores: Path, out: Path, checkpoint: Path | None, share: float, count: int, seed: int, device: str | None = None,
    overrides: Sequence[str] = (),
) -> list[Path]:  # fmt: skip
    """Write a gallery; memory and time depend on the clips drawn, not on the size of the table.

    Args:
        scores: Table of scores.
        out: The page, .html; the sheet goes beside it as .png, media that are not inlined into a folder NAME_files.
        checkpoint: Of the model that tests the words; None takes the one that the scores were made with.
        share: Of the clips with a cosine that each group has.
        count: Clips to draw from each group.
        seed: Of the draws.
        device: See `restore`.
        overrides: See `restore`.

    Returns:
        The page and the sheet.

    Raises:
        ConfigError, OSError, ValueError: The scores or the checkpoint cannot be used, or no clip can be read.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"expected the page's name to end in .html, got {out}")
    sample = draw(scores, share, count, seed, REFERENCES)
    space = load_space(_checkpoint(checkpoint, sample, scores), device, overrides)
    out.parent.mkdir(parents=True, exist_ok=True)
    page, on_sheet, broken = Page(out), [], []
    with TemporaryDirectory() as scratch:
        references = _references(space, sample.references)
        for card in _cards(space, _in_turn(sample), references, Path(scratch)):
            if isinstance(card, Skipped):
                broken.append(card)
                continue
            page.add(card)
            if sum(card.group == other.group for other in on_sheet) < ROWS:
                on_sheet.append(card)
    if not on_sheet:
        raise ValueError(f"none of the {len(broken)} clips drawn can be read; the first: {_named(broken[0])}")
    if broken:
        print(f"{len(broken)} of the clips drawn cannot be read and are left out, the first: {_named(broken[0])}")
    page.write(sample, share, seed, space.config.clip.words, broken)
    picture = out.with_suffix(".png")
    sheet(on_sheet, sample, share).save(picture, dpi=(300, 300), optimize=True)
    return [out, picture]


def _checkpoint(given: Path | None, sample: Sample, scores: Path) -> Path:
    """The checkpoint to use."""
    named = sample.metadata.get("checkpoint")
    if given is not None:
        return given
    if named is None:
        raise ValueError(f"{scores} does not say which checkpoint it was made with; pass --checkpoint DIR")
    if not Path(named).is_dir():
        raise FileNotFoundError(f"{named}: the checkpoint of {scores} is not there; pass --checkpoint DIR")
    return Path(named)


def _in_turn(sample: Sample) -> list[tuple[str, Row]]:
    """Clips of the two groups in turn, so that the first of both are inlined."""
    pairs = zip_longest(sample.top.rows, sample.bottom.rows)
    return [(group, row) for pair in pairs for group, row in zip(GROUPS, pair, strict=True) if row is not None]


def _named(clip: Skipped) -> str:
    return f"{clip.id}: {clip.reason}"


def _cards(
    space: Space, rows: list[tuple[str, Row]], references: References, scratch: Path
) -> Iterator[Card | Skipped]:
    """Reads clips and tests their words, some at a time."""
    read = _read(partial(media.read, fmt=space.config.clip, folder=scratch), [row for _, row in rows], space)
    groups = [group for group, _ in rows]
    with progress_bar(total=len(rows), desc="clips", unit="clip", leave=False) as bar:
        for first in range(0, len(rows), CLIPS_AT_ONCE):
            batch = list(islice(read, CLIPS_AT_ONCE))
            yield from (shown for _, shown in batch if isinstance(shown, Skipped))
            whole = [
                (group, row, shown)
                for group, (row, shown) in zip(groups[first:], batch, strict=False)
                if not isinstance(shown, Skipped)
            ]
            if whole:
                videos = space.videos(np.stack([shown.video for _, _, shown in whole]))
                captions = judge(space, [row for _, row, _ in whole], videos, references)
                yield from (Card(*parts, caption) for parts, caption in zip(whole, captions, strict=True))
            bar.update(len(batch))


def _references(space: Space, rows: list[Row]) -> References:
    """Embeds what the words are tested against; what cannot be read is passed over."""
    windows = _read(partial(media.model_view, fmt=space.config.clip), rows, space)
    there = [(row, window) for row, window in windows if not isinstance(window, Skipped)]
    if not there:
        raise ValueError(
            f"none of {len(rows)} clips can be read, for example {rows[0].video}: are the videos in place?"
        )
    parts = [there[i : i + CLIPS_AT_ONCE] for i in range(0, len(there), CLIPS_AT_ONCE)]
    embeddings = [space.videos(np.stack([window for _, window in part])) for part in parts]
    return References(torch.cat(embeddings), np.array([row.video for row, _ in there]))


def _read(function: Callable[[Row], Any], rows: list[Row], space: Space) -> Iterator[tuple[Row, Any]]:
    """Rows with what a function reads of them, or a `Skipped`."""
    data = space.config.data
    return guarded(function, ((row.video, row) for row in rows), data.workers, data.timeout)
