"""The demo: what a few labelled clips are worth. Real mp4 files, two models, one table.

python -m recipes.demo [out=runs/comparison paper=true]

Two of three texts of the corpus are wrong. One model trains on all clips alike, the other one on the same clips weighed
by filters that learn from 256 labelled ones (`recipes.curate`). With paper=true a third one trains on all clips alike,
with both techniques of the paper. What is finished is not done again; what was interrupted goes on.
"""

import json
import logging
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from recipes import cli, curate, pretrain
from recipes import config as configuration
from recipes.config import DEMO, Config, RunConfig
from recipes.curate import CurateConfig
from recipes.curation.filters import CurateKeys
from recipes.curation.judging import SPACES
from recipes.curation.weighed import Weights, write_weighed
from recipes.data.clips import EvalClips
from recipes.errors import DataError
from recipes.evaluation import bootstrap, ranking
from recipes.evaluation.embedding import embed
from recipes.evaluation.retrieval import table, units
from recipes.figures import comparison
from recipes.keys import key, section
from recipes.restore import own_data, restore
from recipes.splits import procedural_corpus, train_and_test
from recipes.training import checkpoint
from recipes.training.start import is_trained

PLAIN, CURATED, PAPER = "plain", "curated", "paper"
CLIPS = "clips.jsonl"
TASK = "text->video"

log = logging.getLogger(__name__)


def recipe() -> Config:
    """The demo's configuration, on the corpus of which most texts are wrong."""
    return configuration.load(DEMO, ["harmonize=none", "gram.every=0", "corpus.style=wild"])


@dataclass
class DemoKeys:
    """Where, with which model, and how filters learn."""

    out: Path = key(Path("runs/comparison"), "folder of the runs and the report")
    paper: bool = key(False, "train a third model, with both techniques of the paper")
    filters: int = key(4, "see curate.filters", least=2, most=64)
    filter_steps: int = key(100, "see curate.steps", least=1)
    rounds: int = key(2, "see curate.rounds", least=1, most=20)
    recipe: Config = section(recipe, "of each model")


def runs(keys: DemoKeys) -> dict[str, Config]:
    """The configuration of each model by its name."""
    config, place = keys.recipe, str(keys.out)
    clips, weighed = (str(keys.out / name) for name in (CLIPS, f"curation/{curate.MANIFEST}"))
    plain = replace(config, run=RunConfig(PLAIN, place), data=replace(config.data, manifest=clips))
    later = replace(plain, evaluate=replace(config.evaluate, untrained=False))
    curated = replace(later, run=RunConfig(CURATED, place), data=replace(config.data, manifest=weighed))
    paper = replace(later, run=RunConfig(PAPER, place), harmonize="both")
    return {PLAIN: plain, CURATED: curated} | ({PAPER: paper} if keys.paper else {})


def curation(keys: DemoKeys, corpus: Path) -> CurateConfig:
    """How the corpus is weighed."""
    trusted = corpus / "trusted.jsonl"
    if not trusted.is_file():
        raise DataError(f"{corpus} has no trusted.jsonl, an older version built it: remove the folder")
    config = {field.name: getattr(keys.recipe, field.name) for field in fields(Config)}
    data = replace(keys.recipe.data, manifest=str(corpus), test=str(corpus / "test.jsonl"))
    how = CurateKeys(str(trusted), keys.out / "curation", keys.filters, keys.filter_steps, keys.rounds)
    return CurateConfig(**config | {"data": data}, curate=how)


def write_clips(config: CurateConfig, out: Path) -> None:
    """Write the manifest of the plain model: the same clips as those that are weighed, each with a weight of one."""
    splits = train_and_test(config)
    number = sum(max(len(row["narrations"]), 1) for row in splits.train)
    ones = Weights(dict.fromkeys(SPACES, np.ones(number)), np.ones(number, bool))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_weighed(out, splits.train, ones, splits.train.select([]), splits.test, config.clip.seconds)


def plan(keys: DemoKeys) -> str:
    """Which models would be trained."""
    done = {name: is_trained(config) for name, config in runs(keys).items()}
    lines = [f"{name}: {'is trained already' if yes else 'would be trained'}" for name, yes in done.items()]
    return "\n".join([*lines, f"then {keys.out}/report.html is written"])


def demo(keys: DemoKeys) -> None:
    """Train the models, and compare them."""
    configs, weighing = runs(keys), curation(keys, procedural_corpus(keys.recipe.corpus))
    if not (keys.out / CLIPS).exists():
        write_clips(weighing, keys.out / CLIPS)
    for name, config in configs.items():
        if name == CURATED:
            curate.curate(weighing)
        if is_trained(config):
            log.info("%s is trained already", config.folder)
        else:
            log.info("%s: training on %s", name, config.data_name)
            pretrain.pretrain(config, resume=(config.folder / checkpoint.CONFIG).exists())
    report(keys, configs)


def report(keys: DemoKeys, configs: dict[str, Config]) -> None:
    """Print one table, and write a page that says what won, by how much."""
    results = {name: json.loads((config.folder / "retrieval.json").read_text()) for name, config in configs.items()}
    figures = {"untrained": results[PLAIN]["untrained"]} | {name: result["trained"] for name, result in results.items()}
    gains = {name: gain(configs[PLAIN], config) for name, config in configs.items() if name != PLAIN}
    sentences = [sentence(name, *figures) for name, figures in gains.items()]
    print(table({name: {TASK: tasks[TASK]} for name, tasks in figures.items()}))
    print("\n".join(sentences))
    reports = {name: f"{name}/report.html" for name in configs}
    page = comparison.write(
        keys.out / "report.html", {name: f[TASK] for name, f in figures.items()}, sentences, reports
    )
    print(f"report: {page}")


def gain(plain: Config, other: Config) -> tuple[float, float, float]:
    """R@10 of a model less that of the plain one, on the same clips: a paired bootstrap over videos, 95%."""
    (hits, videos), (others, _) = (retrieved(config) for config in (plain, other))
    difference = np.column_stack([others.astype(float) - hits, np.ones(len(hits))])
    drawn = bootstrap.sums(difference, videos)
    return float(difference[:, 0].mean()), *bootstrap.interval(drawn[:, 0] / drawn[:, 1])


def retrieved(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Whether each held-out clip is among the first ten that its text finds (N,), and the video it is of (N,)."""
    restored = restore(config.folder)
    clips = EvalClips(own_data(config).test, restored.tokenizer, config.clip)
    embedded = embed(restored.modules, clips, config.evaluate.batch_size, config.data)
    ranks = ranking.ranks(embedded.vectors["vt_text"], embedded.vectors["vt_video"])
    return (ranks <= 10).numpy(), units(embedded, clips)


def sentence(name: str, difference: float, low: float, high: float) -> str:
    """What a person is told of one comparison."""
    what = {
        CURATED: "Training on pairs weighed by filters that learnt from a few labelled clips",
        PAPER: "Training with both techniques of the paper",
    }
    interval = f"(95% interval {100 * low:+.1f} to {100 * high:+.1f})"
    if low <= 0 <= high:
        moved = f"{100 * difference:+.1f} points {interval}"
        return f"{what[name]} changes R@10 by no more than these clips can show: {moved}."
    verb = "raises" if low > 0 else "lowers"
    return f"{what[name]} {verb} R@10 by {100 * abs(difference):.1f} points against plain training {interval}."


COMMAND: cli.Command[Any] = cli.Command("recipes.demo", __doc__, DemoKeys, demo, plan)
main = COMMAND.main

if __name__ == "__main__":
    cli.exit(main)
