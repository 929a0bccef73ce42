"""What must be true after a run that was killed again and again."""

from collections import Counter
from dataclasses import dataclass
from itertools import islice

import numpy as np

from recipes.config import Config
from recipes.data.sampler import BatchSampler
from recipes.data.skipped import SKIPPED
from recipes.files import jsonl
from recipes.research.soak.launch import Watch
from recipes.splits import Splits
from recipes.training import checkpoint, metrics

GROWTH = 0.05  # of memory over the quiet part, at most
SETTLED = 0.25  # of the quiet part, after which memory is compared


@dataclass(frozen=True)
class Check:
    """A statement, whether it holds, and what was seen."""

    statement: str
    holds: bool
    seen: str


def checks(config: Config, splits: Splits, broken: dict[str, str], watch: Watch) -> list[Check]:
    """Compare what a run, asked to log every step, wrote down with what must have happened."""
    rows = metrics.read_metrics(config.folder)
    steps = [row["step"] for row in rows]
    last = steps[-1] if steps else 0
    saved = checkpoint.load_facts(checkpoint.latest(config.folder))["step"]
    visits = visited(config, splits, last)
    expected = {name: count for name, count in visits.items() if name in broken}
    skipped = [row["id"] for row in jsonl.read_rows(config.folder / SKIPPED)]
    counted = rows[-1]["skipped_clips"] if rows else 0
    losses = [row["loss"] for row in rows if "loss" in row]
    tenth = max(len(losses) // 10, 1)
    before, after = np.mean(losses[:tenth]), np.mean(losses[-tenth:])
    training, loading = growth(watch, watch.training), growth(watch, watch.loading)
    return [
        Check("every step was taken once, none is lost", steps == list(range(1, last + 1)), f"{last} steps"),
        Check("the last checkpoint is of the last step", saved == last, f"step {saved}"),
        Check(
            "of the clips that the order visits, the broken ones were skipped, each time, and no other",
            counted == sum(expected.values()) and set(skipped) == set(expected),
            f"{counted} times, {len(skipped)} clips of {sum(visits.values())} and {len(visits)}",
        ),
        Check("a broken clip is listed once", len(skipped) == len(set(skipped)), f"{len(skipped)} lines"),
        Check(
            "the run stopped when it was asked to, and was not started again",
            watch.code not in (0, None),
            f"exit status {watch.code}",
        ),
        Check("it has learnt", after < before, f"loss {before:.3f} in the first tenth, {after:.3f} in the last"),
        Check(
            f"in the quiet part memory grew by less than {GROWTH:.0%}",
            max(training, loading) < GROWTH,
            f"training processes {training:+.1%}, workers {loading:+.1%}",
        ),
    ]


def visited(config: Config, splits: Splits, steps: int) -> Counter[str]:
    """How often the first steps visit each clip, by id."""
    order = BatchSampler(splits.sources, config.train.batch_size, config.train.seed)
    ids = splits.train["id"][:]
    return Counter(ids[row] for keys in islice(order, steps) for _, row in keys)


def growth(watch: Watch, memory: list[float]) -> float:
    """How much the memory of processes grew in the part after the last fault, once it had settled; a share of it."""
    last = watch.faults[-1][0] if watch.faults else 0.0
    end = watch.seconds[-1]
    quiet = [m for s, m in zip(watch.seconds, memory, strict=True) if s > last + SETTLED * (end - last)]
    third = max(len(quiet) // 3, 1)
    begin = float(np.median(quiet[:third])) if quiet else 0.0
    return (float(np.median(quiet[-third:])) - begin) / begin if begin else float("nan")
