"""Reproduce the figures of the paper's supplement at a scale of minutes: train, score, draw.

python -m recipes.research.reproduce [out=runs/figures] [recipe.train.steps=1000 ...]

Trains the demo model on the procedural corpora: plainly, with realignment alone and with the curriculum alone on
`wild`, plainly on `narrated`. The last one, trained for 200 further iterations on `wild` as in the paper, scores that
corpus.
What is finished is not done again; what was interrupted goes on. Written to out: dynamics.*, gallery.html and .png,
detection.md, and the runs and scores they are drawn from.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from recipes import cli, keys, pretrain, score
from recipes import config as configuration
from recipes.config import DEMO, Config
from recipes.figures.command import DetectionKeys, DynamicsKeys, draw_dynamics, draw_gallery, judge_detection
from recipes.figures.gallery.sample import GalleryKeys
from recipes.keys import key, section
from recipes.score import ScoreKeys
from recipes.splits import procedural_corpus
from recipes.training.start import is_trained

RUNS = {
    "baseline": ("wild", "none"),
    "realign": ("wild", "realign"),
    "curriculum": ("wild", "curriculum"),
    "narrated": ("narrated", "none"),
}
ITERATIONS, BATCH = 200, 64  # of further optimisation, as in the paper

log = logging.getLogger(__name__)


def demo() -> Config:
    """The demo, with probes."""
    return configuration.load(DEMO, ["gram.probe=[layers,groups,paths]", "gram.probe_every=20"])


@dataclass
class ReproduceKeys:
    """Where, and with which model."""

    out: Path = key(Path("runs/figures"), "folder of runs and figures")
    recipe: Config = section(demo, "of each run")


def run_config(options: ReproduceKeys, name: str) -> Config:
    """The configuration of one of RUNS."""
    style, harmonize = RUNS[name]
    recipe = options.recipe
    place = replace(recipe.run, dir=str(options.out), name=name)
    return replace(recipe, run=place, corpus=replace(recipe.corpus, style=style), harmonize=harmonize)


def plan(options: ReproduceKeys) -> str:
    """Which runs would be trained."""
    trained = {name: is_trained(run_config(options, name)) for name in RUNS}
    lines = [f"{name}: {'is trained already' if done else 'would be trained'}" for name, done in trained.items()]
    return "\n".join([*lines, f"then wild is scored, and the figures are drawn, in {options.out}"])


def reproduce(options: ReproduceKeys) -> None:
    """Train, score, draw."""
    configs = {name: run_config(options, name) for name in RUNS}
    for config in configs.values():
        keys.check(config)
        if is_trained(config):
            log.info("%s is trained already", config.folder)
        else:
            pretrain.run(config, resume=(config.folder / "config.yaml").exists())
    out, wild = options.out, procedural_corpus(configs["baseline"].corpus)
    untuned, tuned = out / "wild-untuned.parquet", out / "wild.parquet"
    narrated = {"checkpoint": configs["narrated"].folder, "data": str(wild), "batch_size": BATCH}
    score.run(ScoreKeys(out=untuned, **narrated))
    score.run(ScoreKeys(out=tuned, iterations=ITERATIONS, keep=0.95, **narrated))
    *runs, against = (str(config.folder) for config in configs.values())
    draw_dynamics(DynamicsKeys(runs=runs, against=against, out=out))
    judge_detection(DetectionKeys(scores=[tuned, untuned], truth=wild / "truth.jsonl", out=out))
    draw_gallery(GalleryKeys(scores=tuned, out=out / "gallery.html"))


COMMAND = cli.Command("recipes.research.reproduce", __doc__, ReproduceKeys, reproduce, plan)
main = COMMAND.main

if __name__ == "__main__":
    cli.exit(main)
