"""Draw the figures: of the documentation, and of scored clips.

python -m recipes.figures realign [--out docs/images/realign]
python -m recipes.figures gallery --scores scores.parquet --out gallery.html [--share 0.05] [--count 50] [--seed 0]

`realign` draws what each realignment makes of two gradients in the plane, one PNG per method and one with all.
`gallery` shows clips from the top and the bottom of a table of scores, on a page and on a sheet (PNG) beside it.
"""

import argparse
import io
import sys
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from recipes.config import ConfigError
from recipes.gallery.build import build as build_gallery
from recipes.plots import realign

COLOURS = 96  # of a picture's palette: a third of the size of true colours, and as smooth


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as a small PNG with a palette."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    picture = Image.open(buffer).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    picture.save(path, optimize=True, dpi=(figure.dpi, figure.dpi))
    return path


# ------------------------------------------------------------------------------------------------------------- realign
def realign_figures(options: argparse.Namespace) -> list[Path]:
    """One figure per method, and the overview."""
    options.out.mkdir(parents=True, exist_ok=True)
    paths = [save(realign.draw(name), options.out / f"{name}.png") for name in realign.METHODS]
    return [*paths, save(realign.overview(), options.out / "overview.png")]


# ------------------------------------------------------------------------------------------------------------- gallery
def gallery(options: argparse.Namespace) -> list[Path]:
    """The page and the sheet."""
    return build_gallery(options.scores, options.out, options.checkpoint, options.share, options.count, options.seed)


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    options = parser().parse_args(arguments)
    try:
        files = options.draw(options)
    except (ConfigError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("written: " + ", ".join(map(str, files)))
    return 0


def parser() -> argparse.ArgumentParser:
    """One command per set of figures; each names the function that draws it."""
    p = argparse.ArgumentParser(
        prog="python -m recipes.figures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = p.add_subparsers(metavar="figures", required=True)

    methods = commands.add_parser("realign", help="what each realignment makes of two gradients")
    methods.add_argument("--out", type=Path, default=Path("docs/images/realign"), help="folder of the pictures")
    methods.set_defaults(draw=realign_figures)

    clips = commands.add_parser("gallery", help="clips whose gradients agree most and least")
    clips.add_argument("--scores", type=Path, required=True, help="table of recipes.score")
    clips.add_argument(
        "--out", type=Path, default=Path("gallery.html"), help="the page; the sheet is NAME.png beside it"
    )
    clips.add_argument("--share", type=float, default=0.05, help="of the clips, at each end (default 0.05)")
    clips.add_argument("--count", type=int, default=50, help="clips drawn from each end (default 50)")
    clips.add_argument("--seed", type=int, default=0, help="of the draw (default 0)")
    clips.add_argument("--checkpoint", type=Path, help="of the model that tests words; default: the one of the scores")
    clips.set_defaults(draw=gallery)
    return p


if __name__ == "__main__":
    sys.exit(main())
