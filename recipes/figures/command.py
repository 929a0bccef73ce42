"""Draw the figures: of the documentation, of runs, and of scored clips."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import cleandoc
from pathlib import Path
from typing import Any

from recipes.cli import Command, Commands
from recipes.figures import realign
from recipes.figures.dynamics import plot, runs, text
from recipes.figures.dynamics.runs import Run
from recipes.figures.gallery import build as gallery
from recipes.figures.gallery.sample import GalleryKeys
from recipes.figures.style import save_png
from recipes.files import check_place, write_atomically
from recipes.keys import key
from recipes.scoring import detection
from recipes.training.dynamics import TRAINING


@dataclass
class RealignKeys:
    """Where the pictures of the methods go."""

    out: Path = key(Path("docs/images/realign"), "folder of the pictures")


@dataclass
class DynamicsKeys:
    """Which cosines of which runs."""

    runs: list[str] = key(meaning="folders of runs, or names in runs/; at least one")
    against: str | None = key(None, "a run, of another corpus, to compare the means with")
    name: str = key(TRAINING, "which cosines: backbone, layers/0, groups/mlp, ...")
    out: Path = key(Path("runs/dynamics"), "folder of what is written")

    def problems(self) -> Iterator[str]:
        """Nothing to draw."""
        if not self.runs:
            yield "runs=[] names no run"


@dataclass
class DetectionKeys:
    """Which tables, and the truth about them."""

    scores: list[Path] = key(meaning="tables of recipes.score; at least one")
    truth: Path = key(meaning="truth.jsonl of a corpus, or the annotation of HTM-Align, VGGSounder or AVID")
    out: Path = key(meaning="folder of what is written")

    def problems(self) -> Iterator[str]:
        """Nothing to judge."""
        if not self.scores:
            yield "scores=[] names no table"


def draw_realign(keys: RealignKeys) -> None:
    """Draw what each realignment makes of two gradients in the plane: a PNG for each method, and one with all.

    python -m recipes.figures realign [out=docs/images/realign]
    """
    keys.out.mkdir(parents=True, exist_ok=True)
    paths = [save_png(realign.draw(name), keys.out / f"{name}.png") for name in realign.METHODS]
    _print_written([*paths, save_png(realign.overview(), keys.out / "overview.png")])


def load_runs(keys: DynamicsKeys) -> tuple[list[Run], Run | None]:
    """The runs, and the one to compare them with; raises a DataError where one has no cosines of the name."""
    chosen = [runs.load(place) for place in keys.runs]
    against = None if keys.against is None else runs.load(keys.against)
    runs.check_name(chosen + ([against] if against else []), keys.name)
    return chosen, against


def plan_dynamics(keys: DynamicsKeys) -> str:
    """How many cosines there are of each run."""
    check_place(keys.out / "dynamics.png")
    chosen, against = load_runs(keys)
    counts = {run.name: int(run.dynamics.total(keys.name).moments.number) for run in [*chosen, against] if run}
    return "\n".join(f"run {name}: {count} cosines over {chosen[0].over(keys.name)}" for name, count in counts.items())


def draw_dynamics(keys: DynamicsKeys) -> None:
    """Draw how the cosines of the two gradients are distributed over the training of runs, before realignment.

    python -m recipes.figures dynamics runs=[baseline,realign] [against=narrated name=layers/0 out=runs/dynamics]

    Writes dynamics.png, .pdf, .json and .md (the numbers), and probes.png where runs have probes.
    """
    chosen, against = load_runs(keys)
    summary = text.summary(chosen, against, keys.name)
    keys.out.mkdir(parents=True, exist_ok=True)
    png, pdf, numbers, words = (keys.out / f"dynamics.{kind}" for kind in ("png", "pdf", "json", "md"))
    figure = plot.draw(chosen, keys.name)
    save_png(figure, png)
    figure.savefig(pdf)
    write_atomically(numbers, json.dumps(summary, indent=1, ensure_ascii=False))
    write_atomically(words, text.markdown(summary))
    probes = plot.draw_probes(chosen)
    _print_written([png, pdf, numbers, words] + ([save_png(probes, keys.out / "probes.png")] if probes else []))


def draw_gallery(keys: GalleryKeys) -> None:
    """Show clips from the top and the bottom of a table of scores, on a page and on a sheet (PNG) beside it.

    python -m recipes.figures gallery scores=scores.parquet [out=gallery.html share=0.05 count=50]
    """
    _print_written(gallery.build(keys))


def plan_detection(keys: DetectionKeys) -> str:
    """How many clips of each table can be judged."""
    check_place(keys.out / "detection.json")
    return "\n".join(
        f"{scores}, {pair}: {len(clips.aligned)} clips, {clips.aligned.sum()} {detection.SUBJECT[pair]} belong; "
        f"{detection.words(clips.left_out)}"
        for scores in keys.scores
        for pair, clips in detection.joined(scores, keys.truth).items()
    )


def judge_detection(keys: DetectionKeys) -> None:
    """Judge how well the figures of a table find texts and sounds that do not belong: detection.json, detection.md.

    python -m recipes.figures detection scores=[scores.parquet] truth=truth.jsonl out=FOLDER
    """
    tables = {scores.stem: detection.judge(scores, keys.truth) for scores in keys.scores}
    print(detection.markdown(tables))
    keys.out.mkdir(parents=True, exist_ok=True)
    numbers, words = keys.out / "detection.json", keys.out / "detection.md"
    write_atomically(numbers, json.dumps(tables, indent=1))
    write_atomically(words, detection.markdown(tables))
    _print_written([numbers, words])


def _print_written(paths: list[Path]) -> None:
    print("written: " + ", ".join(map(str, paths)))


def _command(word: str, keys: type, run: Callable[[Any], None], plan: Callable[[Any], str] | None = None) -> Command:
    return Command(f"recipes.figures {word}", cleandoc(run.__doc__ or ""), keys, run, plan)


COMMANDS = Commands(
    "recipes.figures",
    __doc__,
    {
        "realign": _command("realign", RealignKeys, draw_realign),
        "dynamics": _command("dynamics", DynamicsKeys, draw_dynamics, plan_dynamics),
        "gallery": _command("gallery", GalleryKeys, draw_gallery, gallery.plan),
        "detection": _command("detection", DetectionKeys, judge_detection, plan_detection),
    },
)
main = COMMANDS.main
