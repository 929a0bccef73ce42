"""Draw the figures: of the documentation, of runs, and of scored clips.

python -m recipes.figures realign [--out docs/images/realign]
python -m recipes.figures dynamics --runs RUN [RUN ...] [--against RUN] [--name backbone] [--out runs/dynamics]
python -m recipes.figures gallery --scores scores.parquet --out gallery.html [--share 0.05] [--count 50] [--seed 0]
python -m recipes.figures detection --scores scores.parquet [...] --truth truth.jsonl --out FOLDER

`realign` draws what each realignment makes of two gradients in the plane, one PNG per method and one with all.
`dynamics` draws how the cosines of the two gradients are distributed over the training of runs, before realignment:
dynamics.png, .pdf, .html (interactive), .json and .md (the numbers), and probes.png where runs have probes.
`gallery` shows clips from the top and the bottom of a table of scores, on a page and on a sheet (PNG) beside it.
`detection` judges how well the figures of a table find the texts that do not belong: detection.json and .md.
"""

import argparse
import io
import json
import sys
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from recipes.errors import ConfigError
from recipes.figures import realign
from recipes.figures.dynamics import page as dynamics_page
from recipes.figures.dynamics import plot as dynamics
from recipes.figures.dynamics import runs as recorded
from recipes.figures.dynamics import text
from recipes.figures.gallery.build import build as build_gallery
from recipes.restore import add_options, overrides_of
from recipes.scoring import detection
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


# ------------------------------------------------------------------------------------------------------------- gallery
def gallery(options: argparse.Namespace) -> list[Path]:
    """The page and the sheet."""
    return build_gallery(
        options.scores, options.out, options.checkpoint, options.share, options.count, options.seed, options.device,
        overrides_of(options),
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- detection
def detection_tables(options: argparse.Namespace) -> list[Path]:
    """What the figures of each table find."""
    tables = {scores.stem: detection.judge(scores, options.truth) for scores in options.scores}
    print(detection.markdown(tables))
    return detection.write(tables, options.out)


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

    cosines = commands.add_parser("dynamics", help="the distribution of cos(g_va, g_vt) over the training of runs")
    cosines.add_argument("--runs", nargs="+", required=True, metavar="RUN", help="folders of runs, or names in runs/")
    cosines.add_argument("--against", metavar="RUN", help="a run, of another corpus, to compare the means with")
    cosines.add_argument("--name", default=TRAINING, help="which cosines: backbone, layers/0, groups/mlp, ...")
    cosines.add_argument("--out", type=Path, default=Path("runs/dynamics"), help="folder of what is written")
    cosines.set_defaults(draw=dynamics_figures)
    clips = commands.add_parser("gallery", help="clips whose gradients agree most and least")
    clips.add_argument("--scores", type=Path, required=True, help="table of recipes.score")
    clips.add_argument(
        "--out", type=Path, default=Path("gallery.html"), help="the page; the sheet is NAME.png beside it"
    )
    clips.add_argument("--share", type=float, default=0.05, help="of the clips, at each end (default 0.05)")
    clips.add_argument("--count", type=int, default=50, help="clips drawn from each end (default 50)")
    clips.add_argument("--seed", type=int, default=0, help="of the draw (default 0)")
    clips.add_argument("--checkpoint", type=Path, help="of the model that tests words; default: the one of the scores")
    add_options(clips, batch_size=False)
    clips.set_defaults(draw=gallery)

    found = commands.add_parser("detection", help="how well scores find the texts that do not belong")
    found.add_argument("--scores", type=Path, nargs="+", required=True, help="tables of recipes.score")
    found.add_argument("--truth", type=Path, required=True, help="truth.jsonl of the corpus that was scored")
    found.add_argument("--out", type=Path, required=True, help="folder of what is written")
    found.set_defaults(draw=detection_tables)
    return p


if __name__ == "__main__":
    sys.exit(main())
