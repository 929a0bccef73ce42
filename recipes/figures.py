"""Draw the figures of the documentation.

python -m recipes.figures realign [--out docs/images/realign]
python -m recipes.figures dynamics --runs RUN [RUN ...] [--against RUN] [--name backbone] [--out runs/dynamics]

`realign` draws what each realignment makes of two gradients in the plane, one PNG per method and one with all.
`dynamics` draws how the cosines of the two gradients are distributed over the training of runs, before realignment:
dynamics.png, .pdf, .html (interactive), .json and .md (the numbers), and probes.png where runs have probes.
"""

import argparse
import io
import json
import sys
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from recipes.dynamics import runs as recorded
from recipes.dynamics import text
from recipes.dynamics.runs import DynamicsError
from recipes.plots import dynamics, dynamics_page, realign
from recipes.training.checkpoint import write_atomically
from recipes.training.dynamics import TRAINING

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


# ------------------------------------------------------------------------------------------------------------ dynamics
def dynamics_figures(options: argparse.Namespace) -> list[Path]:
    """The panels as PNG, PDF and HTML, the numbers as JSON and Markdown, and the probes."""
    runs = [recorded.load(where) for where in options.runs]
    against = None if options.against is None else recorded.load(options.against)
    recorded.check_name(runs + ([against] if against else []), options.name)
    summary = text.summary(runs, against, options.name)
    options.out.mkdir(parents=True, exist_ok=True)
    paths = [options.out / f"dynamics.{kind}" for kind in ("png", "pdf", "html", "json", "md")]
    figure = dynamics.draw(runs, options.name)
    save(figure, paths[0])
    figure.savefig(paths[1])
    write_atomically(paths[2], dynamics_page.page(runs, options.name, summary))
    write_atomically(paths[3], json.dumps(summary, indent=1, ensure_ascii=False))
    write_atomically(paths[4], text.markdown(summary))
    probes = dynamics.draw_probes(runs)
    return paths if probes is None else [*paths, save(probes, options.out / "probes.png")]


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    options = parser().parse_args(arguments)
    try:
        files = options.draw(options)
    except DynamicsError as error:
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

    cosines = commands.add_parser("dynamics", help="the distribution of cos(g_va, g_vt) over the training of runs")
    cosines.add_argument("--runs", nargs="+", required=True, metavar="RUN", help="folders of runs, or names in runs/")
    cosines.add_argument("--against", metavar="RUN", help="a run, of another corpus, to compare the means with")
    cosines.add_argument("--name", default=TRAINING, help="which cosines: backbone, layers/0, groups/mlp, ...")
    cosines.add_argument("--out", type=Path, default=Path("runs/dynamics"), help="folder of what is written")
    cosines.set_defaults(draw=dynamics_figures)
    return p


if __name__ == "__main__":
    sys.exit(main())
