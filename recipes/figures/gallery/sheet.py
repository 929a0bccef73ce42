"""The contact sheet of a gallery: a picture as wide as a paper's column, at 300 dots per inch."""

from functools import cache

from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont

from recipes.figures.gallery.captions import Caption, is_aligned
from recipes.figures.gallery.media import side_by_side
from recipes.figures.gallery.page import GROUPS, Card
from recipes.figures.gallery.sample import Sample

WIDTH = 1050  # pixels: 3.5 inches
ROWS = 6  # clips of a group
MARGIN, GUTTER = 12, 36
CELL = (WIDTH - 2 * MARGIN - GUTTER) // 2
FONT_SIZE = 28  # pixels: 6.7 points
LINE = 36
SOUND = 30
LINES = 4  # of a caption at most
TALLEST = 150  # pixels of a strip of key frames
INK, GREY, GREEN, BLUE = "#111111", "#666666", "#15803d", "#7a8aa0"


def sheet(cards: list[Card], sample: Sample, share: float) -> Image.Image:
    """Draw the first clips drawn of both groups in two columns: key frames, loudness, caption, cosine.

    Args:
        cards: At most ROWS of each group.
        sample: Where the groups end.
        share: Of the clips with a cosine that each group has.

    Returns:
        The picture, RGB, WIDTH pixels wide.
    """
    columns = [[_cell(card) for card in cards if card.group == group] for group in GROUPS]
    count = max(map(len, columns))
    heights = [max(column[i].height for column in columns if i < len(column)) for i in range(count)]
    top = MARGIN + 2 * LINE + 10
    picture = Image.new("RGB", (WIDTH, top + sum(heights) + 22 * count), "white")
    draw = ImageDraw.Draw(picture)
    for x, name, sign, group in zip(
        (MARGIN, MARGIN + CELL + GUTTER), ("Top", "Bottom"), "≥≤", (sample.top, sample.bottom), strict=True
    ):
        draw.text((x, MARGIN), f"{name} {100 * share:g}%", INK, font(bold=True))
        draw.text((x, MARGIN + LINE), f"cosine {sign} {_signed(group.cut)}", GREY, font())
    for x, column in zip((MARGIN, MARGIN + CELL + GUTTER), columns, strict=True):
        y = top
        for cell, height in zip(column, heights, strict=False):
            picture.paste(cell, (x, y))
            y += height + 22
    return picture


def _cell(card: Card) -> Image.Image:
    """One clip, CELL pixels wide."""
    strip = Image.fromarray(side_by_side(card.shown.frames))
    scale = min(CELL / strip.width, TALLEST / strip.height)
    strip = strip.resize((round(strip.width * scale), round(strip.height * scale)), Image.Resampling.LANCZOS)
    lines = break_lines(card.caption)
    cell = Image.new("RGB", (CELL, strip.height + SOUND + LINE * (len(lines) + 1) + 12), "white")
    draw = ImageDraw.Draw(cell)
    cell.paste(strip, (0, 0))
    middle, step = strip.height + 6 + SOUND / 2, CELL / max(1, len(card.shown.outline))
    for i, peak in enumerate(card.shown.outline):
        x, half = (i + 0.5) * step, 0.5 + peak * SOUND / 2
        draw.line((x, middle - half, x, middle + half), BLUE, 4)
    y = strip.height + SOUND + 12
    for line in lines:
        x = 0.0
        for text, aligned in line:
            face = font(bold=aligned)
            draw.text((x, y), text, GREEN if aligned else INK, face)
            x += face.getlength(text)
        y += LINE
    draw.text((0, y), f"cosine {_signed(card.row.cosine)}", GREY, font())
    return cell


def break_lines(caption: Caption) -> list[list[tuple[str, bool]]]:
    """Break a caption at blanks into at most LINES lines of pieces (text, aligned) that fit a cell."""
    lines: list[list[tuple[str, bool]]] = [[]]
    width = 0.0
    for chunk in _unbreakable(caption):
        needed = sum(font(aligned).getlength(text) for text, aligned in chunk)
        trailing = font().getlength(" ") if chunk[-1][0].endswith(" ") else 0
        if lines[-1] and width + needed - trailing > CELL:
            lines.append([])
            width = 0.0
        lines[-1] += chunk
        width += needed
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], [*lines[LINES - 1], ("…", False)]]
    return lines


def _unbreakable(caption: Caption) -> list[list[tuple[str, bool]]]:
    """A caption in chunks that stay on one line, each ending with its blank."""
    chunks: list[list[tuple[str, bool]]] = [[]]
    for text, p in caption.pieces:
        aligned = is_aligned(p)
        parts = " ".join(text.split("\n")).split(" ")
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            if part or not last:
                chunks[-1].append((part + ("" if last else " "), aligned))
            if not last:
                chunks.append([])
    return [chunk for chunk in chunks if chunk]


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


@cache
def font(bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along."""
    return ImageFont.truetype(findfont(FontProperties(weight="bold" if bold else "normal")), FONT_SIZE)
