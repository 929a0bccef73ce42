"""Train for long on damaged data while processes are killed, and check that nothing is lost.

python -m recipes.research.soak minutes=30 processes=2 rounds=5 share=0.1 out=runs/soak

Every tenth video of the training data (by default the procedural corpus), packed into shards, is broken. The run is
the demo's, without an end and with every step logged. Written are the run itself (OUT/run), soak.md, soak.json and
soak.png. The exit status is 0 if every check holds, else 1.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from recipes import cli, keys
from recipes import config as configuration
from recipes.cli import Command
from recipes.config import DEMO, Config, RunConfig
from recipes.errors import ConfigError
from recipes.files import write_atomically
from recipes.keys import key, section
from recipes.research.benchmark import machine
from recipes.research.benchmark.tables import markdown
from recipes.research.soak import plot
from recipes.research.soak.checks import Check, checks
from recipes.research.soak.damage import damaged_shards
from recipes.research.soak.launch import Faults, Watch, soak
from recipes.splits import procedural_corpus, train_and_test
from recipes.training import metrics

ENDLESS = ["train.steps=1000000", "gamma.steps=5000", "train.log_every=1", "train.checkpoint_every=50"]
SHARDS, RUN = "shards", "run"


def endless() -> Config:
    """The demo's run, longer than any soak, with every step logged."""
    return configuration.load(DEMO, ENDLESS)


@dataclass
class SoakKeys:
    """How long to train, on what, and what to break."""

    minutes: float = key(30.0, "until the run is asked to stop", more_than=0, most=10**6)
    processes: int = key(2, "that train together", least=1, most=1024)
    rounds: int = key(5, "processes of each kind to kill", least=0, most=1000)
    share: float = key(0.1, "of the videos to break", least=0, most=1)
    out: Path = key(Path("runs/soak"), "folder to make")
    recipe: Config = section(endless, "the run")


def run(settings: SoakKeys) -> int:
    """Damage, train, check, write; 0 if every check holds."""
    out = settings.out
    if out.exists():
        raise ConfigError(f"{out} exists already; choose another folder with out=, or remove it")
    config, broken = prepare(settings.recipe, out, settings.share)
    faults = Faults(settings.minutes, settings.processes, settings.rounds)
    arguments = ["--config", str(out / "soak.yaml")]
    watch = soak(arguments, faults, out / "torchrun.log", ready=lambda: bool(metrics.read_metrics(config.folder)))
    results = checks(config, train_and_test(config), broken, watch)
    text = report(results, watch, faults)
    write_atomically(out / "soak.md", text)
    write_atomically(out / "soak.json", json.dumps({"broken": broken, **asdict(watch)}))
    plot.save(out / "soak.png", watch, metrics.read_metrics(config.folder))
    print(text)
    print(f"written: {out}/soak.md, soak.json, soak.png")
    return int(not all(check.holds for check in results))


def prepare(recipe: Config, out: Path, share: float) -> tuple[Config, dict[str, str]]:
    """Write partly broken shards, and the configuration of a run on them; returns it, and the damage by id."""
    data = recipe.data.manifest or str(procedural_corpus(recipe.corpus))
    test = recipe.data.test or str(Path(data) / "test.jsonl")
    shards = out / SHARDS
    broken = damaged_shards(data, shards, share, seed=1)  # not the seed of the order
    sources = replace(recipe.data, manifest=str(shards), test=test)
    config = replace(recipe, run=RunConfig(RUN, str(out)), data=sources)
    keys.check(config)
    keys.save(config, out / "soak.yaml")
    return config, broken


def report(results: list[Check], watch: Watch, faults: Faults) -> str:
    kinds = [kind for _, kind in watch.faults]
    killed = ", ".join(f"{kinds.count(kind)} of the kind {kind}" for kind in dict.fromkeys(kinds)) or "none"
    facts = ", ".join(f"{name} {value}" for name, value in machine.facts("cpu").items())
    head = f"{faults.minutes:g} minutes, {faults.processes} processes; killed: {killed}. {facts}."
    rows = [[check.statement, "yes" if check.holds else "**no**", check.seen] for check in results]
    return "\n".join([head, "", *markdown(["", "holds", "found"], rows, words=(0, 1, 2)), ""])


COMMAND = Command("recipes.research.soak", __doc__, SoakKeys, run)
main = COMMAND.main

if __name__ == "__main__":
    cli.exit(main)
