"""Train for long on damaged data while processes are killed, and check that nothing is lost.

python -m recipes.research.soak [--minutes 30] [--processes 2] [--rounds 5] [--share 0.1] [--out runs/soak] [key=value ...]

A tenth of the videos of the training data (by default the procedural corpus), packed into shards, is broken. The
configuration is the demo's. Written are the run itself (OUT/run), soak.md, soak.json and soak.png. The exit status is 0
if every check holds.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from recipes import config as configuration
from recipes.config import DEMO
from recipes.errors import ConfigError
from recipes.research.benchmark.tables import machine
from recipes.research.soak import plot
from recipes.research.soak.checks import Check, checks
from recipes.research.soak.damage import damaged_shards
from recipes.research.soak.launch import Watch, soak
from recipes.splits import procedural_corpus, train_and_test
from recipes.training import metrics
from recipes.training.checkpoint import write_atomically

# Longer than the run, and each step written down.
ENDLESS = ["train.steps=1000000", "gamma.steps=5000", "train.log_every=1", "train.checkpoint_every=50"]
SHARDS, RUN = "shards", "run"


def report(found: list[Check], watch: Watch, options: argparse.Namespace) -> str:
    """The checks as a table."""
    kinds = [kind for _, kind in watch.faults]
    killed = ", ".join(f"{kinds.count(kind)} of the kind {kind}" for kind in dict.fromkeys(kinds)) or "none"
    lines = [f"| {check.statement} | {'yes' if check.holds else '**no**'} | {check.found} |" for check in found]
    facts = ", ".join(f"{name} {value}" for name, value in machine("cpu").items())
    return "\n".join(
        [f"{options.minutes:g} minutes, {options.processes} processes; killed: {killed}. {facts}.", "",
         "| | holds | found |", "|---|---|---|", *lines, ""]
    )  # fmt: skip


def run(options: argparse.Namespace) -> bool:
    """Damage, train, check, write; whether every check holds."""
    if options.out.exists():
        raise ConfigError(f"{options.out} exists already; choose another folder or remove it")
    base = configuration.load(DEMO, options.overrides)
    data = base.data.manifest or str(procedural_corpus(base.corpus))
    test = base.data.test or str(Path(data) / "test.jsonl")
    shards = options.out / SHARDS
    broken = damaged_shards(data, shards, options.share, seed=1)  # not the seed of the order
    arguments = [*ENDLESS, *options.overrides, f"run.dir={options.out}", f"run.name={RUN}"]
    arguments += [f"data.manifest={shards}", f"data.test={test}"]
    config = configuration.load(DEMO, arguments)
    watch = soak(
        ["--config", str(DEMO), *arguments], options.processes, options.minutes, options.rounds,
        options.out / "torchrun.log", ready=lambda: bool(metrics.read(config.folder)),
    )  # fmt: skip
    found = checks(config, train_and_test(config), broken, watch)
    text = report(found, watch, options)
    write_atomically(options.out / "soak.md", text)
    write_atomically(options.out / "soak.json", json.dumps({"broken": broken, **asdict(watch)}))
    plot.save(options.out / "soak.png", watch, metrics.read(config.folder))
    print(text)
    return all(check.holds for check in found)


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m recipes.research.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--minutes", type=float, default=30, help="until the run is asked to stop (default: %(default)s)")
    p.add_argument("--processes", type=int, default=2, help="that train together (default: %(default)s)")
    p.add_argument("--rounds", type=int, default=5, help="processes of each kind to kill (default: %(default)s)")
    p.add_argument("--share", type=float, default=0.1, help="of the videos to break (default: %(default)s)")
    p.add_argument("--out", type=Path, default=Path("runs/soak"), help="folder to make")
    p.add_argument("overrides", nargs="*", metavar="key=value", help="override keys of the demo's configuration")
    options = p.parse_args(arguments)
    try:
        holds = run(options)
    except (ConfigError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"written: {options.out}/soak.md, soak.json, soak.png")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
