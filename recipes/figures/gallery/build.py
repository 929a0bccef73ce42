"""Builds a gallery: draws clips, cuts them out of their videos, tests their words, writes the page and the sheet."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from recipes.data.skipped import Skipped
from recipes.data.workers import guarded
from recipes.figures.gallery import media
from recipes.figures.gallery.media import Row, Shown
from recipes.figures.gallery.page import Card, page
from recipes.figures.gallery.sample import GalleryKeys, Sample, draw
from recipes.figures.gallery.sheet import ROWS, draw_sheet
from recipes.figures.gallery.words import References, embed_video, judge
from recipes.figures.page_media import Media, report_unreadable
from recipes.files import check_place, write_atomically
from recipes.model.build import device_of
from recipes.progress import progress_bar
from recipes.restore import Restored, restore_with

REFERENCES = 256  # windows that words are tested against, those of a clip's own video among them, which do not count


def plan(keys: GalleryKeys) -> str:
    """Which clips would be shown; raises what `build` raises before it reads a clip."""
    check_place(keys.out)
    sample = draw(keys.scores, keys.share, keys.count, keys.seed, REFERENCES)
    restore_with(replace(keys, checkpoint=_checkpoint(keys, sample)))
    shown = " and ".join(f"{len(rows)} of the {group} {100 * keys.share:g}%" for group, rows in sample.groups.items())
    return (
        f"{sample.scored} clips, {sample.defined} with a cosine; {shown} would be shown, their words tested by "
        f"{_checkpoint(keys, sample)}"
    )


def build(keys: GalleryKeys) -> list[Path]:
    """Write a gallery; memory and time depend on the clips drawn, not on the size of the table.

    The page goes to `out`, the sheet beside it as .png, media that are not inlined into a folder NAME_files. Returns
    the page and the sheet.
    """
    sample = draw(keys.scores, keys.share, keys.count, keys.seed, REFERENCES)
    model = restore_with(replace(keys, checkpoint=_checkpoint(keys, sample)))
    model.modules.to(device_of(model.config.train)).eval()
    keys.out.parent.mkdir(parents=True, exist_ok=True)
    place, broken = Media(keys.out), []
    cards: dict[str, list[Card]] = {group: [] for group in sample.groups}
    on_sheet: dict[str, list[tuple[Card, Shown]]] = {group: [] for group in sample.groups}
    references = _references(model, sample.references)
    for group, row, shown in _clips(model, sample):
        if isinstance(shown, Skipped):
            broken.append(shown)
            continue
        caption = judge(model, row, embed_video(model.modules, shown.video), references)
        cards[group].append(card := Card(row, caption, shown.outline, shown.ratio, place.add(row.clip, shown.files)))
        if len(on_sheet[group]) < ROWS:
            on_sheet[group].append((card, shown))
    report_unreadable(broken, sum(map(len, cards.values())))
    write_atomically(keys.out, page(cards, sample, keys, model.config.clip.words, broken))
    place.remove_old()
    picture = keys.out.with_suffix(".png")
    draw_sheet(on_sheet, sample, keys.share).save(picture, dpi=(300, 300), optimize=True)
    return [keys.out, picture]


def _checkpoint(keys: GalleryKeys, sample: Sample) -> Path:
    if keys.checkpoint is not None:
        return keys.checkpoint
    named = sample.metadata.get("checkpoint")
    if named is None:
        raise ValueError(f"{keys.scores} does not say which checkpoint it was made with: give checkpoint=DIR")
    if not Path(named).is_dir():
        raise FileNotFoundError(f"{named}: the checkpoint of {keys.scores} is gone: give checkpoint=DIR")
    return Path(named)


def _clips(model: Restored, sample: Sample) -> Iterator[tuple[str, Row, Shown | Skipped]]:
    """Clips of the two groups in turn, so that the first of both are inlined."""
    turns = zip_longest(*([(group, row) for row in rows] for group, rows in sample.groups.items()))
    clips = [clip for turn in turns for clip in turn if clip is not None]
    with TemporaryDirectory() as scratch, progress_bar(total=len(clips), desc="clips", unit="clip", leave=False) as bar:
        cut = partial(media.cut_clip, fmt=model.config.clip, folder=Path(scratch))
        for (group, _), (row, shown) in zip(clips, _read(cut, [row for _, row in clips], model), strict=True):
            yield group, row, shown
            bar.update()


def _references(model: Restored, rows: list[Row]) -> References:
    """Embed what the words are tested against; windows that cannot be read are passed over."""
    windows = _read(partial(media.model_view, fmt=model.config.clip), rows, model)
    embedded = [
        (row.video, embed_video(model.modules, window)) for row, window in windows if not isinstance(window, Skipped)
    ]
    if not embedded:
        example = rows[0].video
        raise ValueError(f"none of {len(rows)} clips can be read, for example {example}: are the videos in place?")
    videos, embeddings = zip(*embedded, strict=True)
    return References(torch.stack(embeddings), np.array(videos))


def _read(function: Callable[[Row], Any], rows: list[Row], model: Restored) -> Iterator[tuple[Row, Any]]:
    """Rows with what a function reads of them, or a `Skipped`."""
    data = model.config.data
    return guarded(function, ((row.video, row) for row in rows), data.workers, data.timeout)
