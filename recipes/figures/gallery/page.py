"""The page of a gallery: one HTML file."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from recipes.data.skipped import Skipped
from recipes.figures.gallery.media import Row
from recipes.figures.gallery.sample import GalleryKeys, Sample
from recipes.figures.gallery.words import FEWEST, THRESHOLD, Caption, is_aligned, most_aligned, share_aligned
from recipes.figures.html import render

PER_PAGE = 10  # clips of each group shown at a time
FREQUENT = 5  # words named that are aligned most often


@dataclass(frozen=True)
class Card:
    """A clip on the page."""

    row: Row
    caption: Caption
    outline: list[float]  # its loudness
    ratio: float  # width by height of its strip of key frames
    addresses: dict[str, str]  # of its media, {".mp4", ".jpg", "-poster.jpg"}


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
