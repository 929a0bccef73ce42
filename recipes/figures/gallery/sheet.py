"""The contact sheet of a gallery: a picture as wide as a paper's column, at 300 dots per inch."""

import re
from collections.abc import Iterator
from functools import cache
from itertools import zip_longest

from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont

from recipes.figures.gallery.media import Shown
from recipes.figures.gallery.page import Card
from recipes.figures.gallery.sample import Sample
from recipes.figures.gallery.words import Caption, is_aligned
from recipes.figures.style import GREEN, INK

WIDTH = 1050  # pixels: 3.5 inches
ROWS = 6  # clips of a group
MARGIN, GUTTER, BELOW = 12, 36, 22
CELL = (WIDTH - 2 * MARGIN - GUTTER) // 2
FONT_SIZE = 28  # pixels: 6.7 points
LINE = 36
SOUND = 30
LINES = 4  # of a caption at most
TALLEST = 150  # pixels of a strip of key frames
HEIGHT = 200 + ROWS * (TALLEST + SOUND + (LINES + 1) * LINE + 12 + BELOW)  # at most
SOUND_COLOUR, NOTE_COLOUR = "#7a8aa0", "#666666"
Line = list[tuple[str, bool]]  # pieces of text, and whether they are an aligned word


def draw_sheet(clips: dict[str, list[tuple[Card, Shown]]], sample: Sample, share: float) -> Image.Image:
    """Draw clips, at most ROWS of each group, in two columns: key frames, loudness, caption, cosine."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    columns = (MARGIN, MARGIN + CELL + GUTTER)
    for x, sign, group in zip(columns, "≥≤", clips, strict=True):
        draw.text((x, MARGIN), f"{group.capitalize()} {100 * share:g}%", INK, font(bold=True))
        draw.text((x, MARGIN + LINE), f"cosine {sign} {_signed(sample.cuts[group])}", NOTE_COLOUR, font())
    y = MARGIN + 2 * LINE + 10
    for row in zip_longest(*clips.values()):
        y = max(_draw_clip(picture, x, y, *clip) for x, clip in zip(columns, row, strict=True) if clip) + BELOW
    return picture.crop((0, 0, WIDTH, y))


def _draw_clip(picture: Image.Image, x: int, y: int, card: Card, shown: Shown) -> int:
    """Draw one clip, CELL pixels wide; returns where it ends."""
    draw = ImageDraw.Draw(picture)
    strip = Image.fromarray(shown.strip)
    scale = min(CELL / strip.width, TALLEST / strip.height)
    strip = strip.resize((round(strip.width * scale), round(strip.height * scale)), Image.Resampling.LANCZOS)
    picture.paste(strip, (x, y))
    y += strip.height + 6
    step = CELL / max(1, len(card.outline))
    for i, peak in enumerate(card.outline):
        middle, half = x + (i + 0.5) * step, 0.5 + peak * SOUND / 2
        draw.line((middle, y + SOUND / 2 - half, middle, y + SOUND / 2 + half), SOUND_COLOUR, 4)
    y += SOUND + 6
    for line in break_lines(card.caption):
        right = float(x)
        for text, aligned in line:
            draw.text((right, y), text, GREEN if aligned else INK, font(bold=aligned))
            right += font(bold=aligned).getlength(text)
        y += LINE
    draw.text((x, y), f"cosine {_signed(card.row.cosine)}", NOTE_COLOUR, font())
    return y + LINE


def break_lines(caption: Caption) -> list[Line]:
    """Break a caption at blanks into at most LINES lines of pieces (text, aligned) that fit a cell."""
    lines: list[Line] = [[]]
    width = 0.0
    for chunk in _unbreakable(caption):
        needed = sum(font(aligned).getlength(text) for text, aligned in chunk)
        blank = font().getlength(" ") if chunk[-1][0].endswith(" ") else 0
        if lines[-1] and width + needed - blank > CELL:
            lines.append([])
            width = 0.0
        lines[-1] += chunk
        width += needed
    return lines if len(lines) <= LINES else [*lines[: LINES - 1], [*lines[LINES - 1], ("…", False)]]


def _unbreakable(caption: Caption) -> Iterator[Line]:
    """A caption in chunks that stay on one line, each ending with its blank."""
    chunk: Line = []
    for text, p in caption.pieces:
        for part in re.findall(r"[^ ]* |[^ ]+", text.replace("\n", " ")):
            chunk.append((part, is_aligned(p)))
            if part.endswith(" "):
                yield chunk
                chunk = []
    if chunk:
        yield chunk


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


@cache
def font(bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along."""
    return ImageFont.truetype(findfont(FontProperties(weight="bold" if bold else "normal")), FONT_SIZE)
