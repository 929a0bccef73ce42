"""What a Gram over less than the backbone costs, and how well it agrees with the whole, over a training.

python -m recipes.research.benchmark cheap workloads=[demo,bert,vit] points=[0,100,200,400]

Each workload trains plainly on batches that can be learnt (`cheap_tasks`). At each point the cosines of the same fresh
samples are read over the whole, the last block, the last projection and in feature space. At the end a step of each is
timed against the plain step, in turns.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import harmony
from recipes.cli import Command
from recipes.keys import key
from recipes.progress import progress_bar
from recipes.research.benchmark import contestants, machine, tables
from recipes.research.benchmark.cheap_tasks import SIGNALS, WRONG, learnable
from recipes.research.benchmark.correlation import equal_signs, spearman
from recipes.research.benchmark.racing import Entrant, Rules, Timing, race
from recipes.research.benchmark.suite import RaceKeys, unknown
from recipes.research.benchmark.workloads import Batch, Workload, build, default

WHOLE, PLAIN = "whole", "plain"
READINGS: dict[str, dict[str, Any]] = {
    WHOLE: {},
    "last block": {"wrt": "last_block"},
    "last projection": {"wrt": "last_projection"},
    "features": {"space": "features"},
}
PROBE_SEED = 1  # of the samples that are compared; training has 0


@dataclass
class CheapKeys(RaceKeys):
    """What to train, and when to compare."""

    workloads: list[str] = key(list(SIGNALS), "models, see the suite step")
    points: list[int] = key([0, 100, 200, 400], "steps after which to compare", least=0)
    samples: int = key(128, "compared at each point", least=3)
    batch: int = key(32, "samples of a step", least=2)
    tokens: int = key(64, "of BERT, ViT and the reference", least=1)
    width: int = key(128, "likewise", least=1)
    layers: int = key(4, "likewise", least=2)
    lr: float = key(3e-4, "of Adam", more_than=0)

    def problems(self) -> Iterator[str]:
        yield from unknown("workloads", self.workloads, list(SIGNALS))
        if not self.points:
            yield "points=[] must name a step, from 0 on"


def run(keys: CheapKeys) -> None:
    about = machine.facts("cpu")
    rows: list[dict[str, Any]] = []
    rounds = len(set(keys.points)) + keys.repeats + 1
    with progress_bar(total=len(keys.workloads) * (max(keys.points) + rounds), desc="cheap") as bar:
        for name in keys.workloads:
            bar.set_postfix(workload=name)
            rows += measure(workload_of(name, keys), keys, bar.update)
            text = report(rows, keys, about)
            files = tables.write(keys.out, "cheap", [row | about for row in rows], text)
    tables.show(text, files)


def workload_of(name: str, keys: CheapKeys) -> Workload:
    """A model with random weights; the demo has its own size."""
    size = {} if name == "demo" else {"tokens": keys.tokens, "width": keys.width, "layers": keys.layers}
    return build(replace(default(name), batch=keys.batch, **size))


def measure(workload: Workload, keys: CheapKeys, advance: Callable[[], Any] = lambda: None) -> list[dict[str, Any]]:
    """Train, compare at some steps, and time; one record for each point and reading."""
    draw, optimizer = learnable(workload), torch.optim.Adam(_parameters(workload), keys.lr)
    torch.manual_seed(PROBE_SEED)
    probes = [draw(keys.batch) for _ in range(-(-keys.samples // keys.batch))]
    torch.manual_seed(0)
    rows, step = [], 0
    for point in sorted(set(keys.points)):
        while step < point:
            optimizer.zero_grad()
            workload.total(workload.forward(draw(keys.batch))).backward()
            optimizer.step()
            step += 1
            advance()
        rows += compare(workload, probes, step)
        advance()
    timings = time_steps(workload, draw, Rules(keys.repeats, keys.limit), advance)
    return [row | timings[row["over"]].columns() for row in rows]


def compare(workload: Workload, probes: list[Batch], step: int) -> list[dict[str, Any]]:
    """The cosines of the probes in every reading against those over the whole."""
    workload.model.eval()  # no dropped tokens: all readings are of one function
    results = {name: [read(workload, probe, name) for probe in probes] for name in READINGS}
    workload.model.train()
    grams = {name: torch.cat([result.gram for result in of]) for name, of in results.items()}
    defined = torch.stack([harmony.defined(gram) for gram in grams.values()]).all(0)
    cosines = {name: harmony.agreement(gram)[defined] for name, gram in grams.items()}
    losses = {
        name: sum(float(r.values[name]) for r in results[WHOLE]) / len(probes) for name in results[WHOLE][0].values
    }
    about = {"workload": workload.spec.workload, "step": step, "samples": int(defined.sum())}
    about["losses"] = ", ".join(f"{name} {value:.2f}" for name, value in losses.items())
    return [about | {"over": name} | _compared(own, cosines[WHOLE]) for name, own in cosines.items()]


def read(workload: Workload, batch: Batch, reading: str) -> harmony.GramVJP:
    options = {"loss_params": workload.loss_params, **options_of(workload, reading)}
    return harmony.gram_vjp(workload.encode, workload.losses, workload.params, batch, **options)


def options_of(workload: Workload, reading: str) -> dict[str, Any]:
    """Keywords of a reading; the whole is what the workload takes its Gram over."""
    return READINGS[reading] or {"wrt": workload.wrt}


def time_steps(
    workload: Workload, draw: Callable[[int], Batch], rules: Rules, advance: Callable[[], Any]
) -> dict[str, Timing]:
    """Time a harmonized step of each reading against the plain step."""
    makers = {PLAIN: contestants.plain} | {
        name: contestants.harmonized(**options_of(workload, name)) for name in READINGS
    }
    entrants = {name: Entrant(Timing(), make(workload, contestants.pcgrad)) for name, make in makers.items()}
    race(list(entrants.values()), rules, lambda: draw(workload.spec.batch), advance)
    for entrant in entrants.values():
        entrant.timing.relate(entrants[PLAIN].timing.seconds)
    return {name: entrant.timing for name, entrant in entrants.items()}


def report(rows: list[dict[str, Any]], keys: CheapKeys, about: dict[str, Any]) -> str:
    points = sorted(set(keys.points))
    head = ["workload", "the Gram over", "cost, plain steps", "rank", "equal signs", "mean cosine", "negative"]
    cells, trained = [], []
    for workload in dict.fromkeys(row["workload"] for row in rows):
        own = [row for row in rows if row["workload"] == workload]
        trained.append(f"- {workload}: {'; '.join(row['losses'] for row in own if row['over'] == WHOLE)}")
        for reading in READINGS:
            of = [row for row in own if row["over"] == reading]
            cost = of[0]["skipped"] or f"{of[0]['ratio']:.2f} [{of[0]['ratio_q1']:.2f}, {of[0]['ratio_q3']:.2f}]"
            columns = ("rank", "sign", "mean", "negative")
            cells.append([workload, reading, cost, *(" / ".join(f"{row[c]:.2f}" for row in of) for c in columns)])
    size = f"{keys.layers} layers of width {keys.width}, {keys.tokens} tokens; the demo has its own size"
    lines = [
        "## A Gram over less: cost and agreement",
        "",
        "Spearman's rank correlation and share of equal signs with the cosines over the whole, of "
        f"{keys.samples} fresh samples, after {' / '.join(map(str, points))} plain steps of Adam; B = {keys.batch}, "
        f"{size}. In {WRONG:.0%} of the samples the text or the label is wrong. Cost: median and quartiles "
        f"of {keys.repeats} rounds. {machine.described(about)}.",
        "",
        *tables.markdown(head, cells, words=(0, 1)),
        "",
        "Losses on those samples at these steps:",
        "",
        *trained,
    ]
    return "\n".join(lines) + "\n"


def _compared(own: Tensor, whole: Tensor) -> dict[str, float]:
    return {
        "rank": spearman(own, whole),
        "sign": equal_signs(own, whole),
        "mean": float(own.mean()),
        "negative": float((own < 0).float().mean()),
    }


def _parameters(workload: Workload) -> list[Tensor]:
    return [*workload.params.values(), *workload.loss_params.values()]


COMMAND = Command("recipes.research.benchmark cheap", __doc__, CheapKeys, run)
