"""Reproduce the figures of the paper's supplement at a scale of minutes: train, score, draw.

python -m recipes.research.reproduce [--out runs/figures] [key=value ...]

Trains the demo model on the procedural corpora: plainly, with realignment alone and with the curriculum alone on
`wild`, plainly on `narrated`. The last one, trained for 200 further iterations on `wild` as in the paper, scores that
corpus.
What is finished is not done again, what was interrupted goes on. Written to --out: dynamics.*, gallery.html and .png,
detection.md, and the runs and scores they are drawn from.
"""

import argparse
import logging
import sys
from pathlib import Path

from recipes import config as configuration
from recipes import keys, pretrain, score
from recipes.config import DEMO
from recipes.figures import command as figures
from recipes.splits import procedural_corpus

RUNS = {
    "baseline": ("wild", "none"),
    "realign": ("wild", "realign"),
    "curriculum": ("wild", "curriculum"),
    "narrated": ("narrated", "none"),
}
PROBES = ("gram.probe=[layers,groups,paths]", "gram.probe_every=20")
ITERATIONS, BATCH = 200, 64  # of further optimisation, as in the paper


def reproduce(out: Path, overrides: list[str]) -> int:
    """Do everything; returns the first exit status that is not 0."""
    for name, (style, harmonize) in RUNS.items():
        settings = [f"run.dir={out}", f"run.name={name}", f"corpus.style={style}", f"harmonize={harmonize}", *PROBES]
        settings += overrides
        if (out / name / "retrieval.json").exists():
            there = configuration.load(out / name / "config.yaml")
            if changed := keys.differences(there, configuration.load(DEMO, settings)):
                print(f"error: {out / name} is of another configuration; choose another --out:", *changed, sep="\n  ")
                return 2
            logging.info("%s is trained already", out / name)
            continue
        resume = ["--resume"] if (out / name / "config.yaml").exists() else []
        if status := pretrain.main(["--config", str(DEMO), *resume, *settings]):
            return status
    wild = procedural_corpus(configuration.load(out / "baseline" / "config.yaml").corpus)
    truth, runs = str(wild / "truth.jsonl"), [str(out / name) for name in RUNS]
    tuned, early = str(out / "wild.parquet"), str(out / "wild-untuned.parquet")
    checkpoint = ["--checkpoint", str(out / "narrated"), "--data", str(wild), "--batch-size", str(BATCH)]
    steps = (
        (score.main, [*checkpoint, "--out", early]),
        (score.main, [*checkpoint, "--out", tuned, "--iterations", str(ITERATIONS), "--keep", "0.95"]),
        (figures.main, ["dynamics", "--runs", *runs[:3], "--against", runs[3], "--out", str(out)]),
        (figures.main, ["detection", "--scores", tuned, early, "--truth", truth, "--out", str(out)]),
        (figures.main, ["gallery", "--scores", tuned, "--out", str(out / "gallery.html")]),
    )
    return next((status for command, arguments in steps if (status := command(arguments))), 0)


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m recipes.research.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--out", type=Path, default=Path("runs/figures"), help="folder of runs and figures")
    p.add_argument("overrides", nargs="*", metavar="key=value", help="override keys of the demo: train.steps=1000")
    options = p.parse_args(arguments)
    return reproduce(options.out, options.overrides)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main())
