"""Draw the figures of the documentation.

python -m recipes.figures realign [--out docs/images/realign]

`realign` draws what each realignment makes of two gradients in the plane, one PNG per method and one with all.
"""

import argparse
import io
import sys
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

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


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    options = parser().parse_args(arguments)
    files = options.draw(options)
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
    return p


if __name__ == "__main__":
    sys.exit(main())
