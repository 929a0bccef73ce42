"""What the tables of a study say: differences from the baseline, paired over seeds."""

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

from recipes.research.study.table import values

Lines = list[dict[str, str]]

# Set before the first run: how much worse than the baseline a rule may be where nothing is wrong, and what is asked of
# it where something is.
MARGIN = 0.02  # of a recall
AIM = 0.5  # of the distance from the baseline to the oracle

METRIC = {"sound": "sound R@10", "silence": "sound R@10", "text_not_of_rare": "text R@10 rare"}  # else:
TEXT = "text R@10"


class Paired(NamedTuple):
    """A rule against the baseline, over the seeds that both have.

    Attributes:
        mean: Of the rule.
        difference: Mean difference from the baseline of the same seed.
        low, high: 95% interval of it, by Student's t.
        effect: The mean difference over the standard deviation of the differences (Cohen's d of paired samples).
        recovered: The mean difference over that of the oracle; NaN where the oracle is the baseline.
        seeds: How many.
    """

    mean: float
    difference: float
    low: float
    high: float
    effect: float
    recovered: float
    seeds: int


def metric_of(kind: str) -> str:
    """The figure that a kind of noise is judged by: retrieval by what it corrupts, or of rare concepts."""
    return METRIC.get(kind, TEXT)


def pair(rule: dict[int, float], baseline: dict[int, float], oracle: dict[int, float]) -> Paired:
    """Compare figures by seed.

    Examples:
        >>> found = pair({0: 0.3, 1: 0.5}, {0: 0.2, 1: 0.3}, {0: 0.5, 1: 0.6})
        >>> round(found.difference, 3), round(found.recovered, 3), found.seeds
        (0.15, 0.5, 2)
    """
    seeds = sorted(rule.keys() & baseline.keys())
    difference = np.array([rule[s] - baseline[s] for s in seeds])
    n, mean = len(seeds), float(difference.mean())
    deviation = float(difference.std(ddof=1)) if n > 1 else math.nan
    half = float(stats.t.ppf(0.975, n - 1)) * deviation / math.sqrt(n) if n > 1 else math.nan
    gaps = [oracle[s] - baseline[s] for s in sorted(oracle.keys() & baseline.keys())]
    gap = float(np.mean(gaps)) if gaps else 0.0
    return Paired(
        float(np.mean([rule[s] for s in seeds])), mean, mean - half, mean + half,
        mean / deviation if deviation else math.nan, mean / gap if gap > 1e-9 else math.nan, n,
    )  # fmt: skip


def rules_there(runs: Lines, cell: str, rules: list[str]) -> list[str]:
    """Those of a cell's rules that have run with a seed of which the baseline has run, too."""
    seeds = values(runs, cell, "baseline", TEXT).keys()
    return [rule for rule in rules if seeds & values(runs, cell, rule, TEXT).keys()]


def compare(runs: Lines, cell: str, rule: str, metric: str) -> Paired:
    """A rule of a cell against its baseline."""
    return pair(*(values(runs, cell, name, metric) for name in (rule, "baseline", "oracle")))


def cost(runs: Lines, cell: str, rule: str) -> float:
    """CPU time of a rule's training over that of the baseline: the median over the seeds."""
    own, plain = (values(runs, cell, name, "cpu_seconds") for name in (rule, "baseline"))
    return float(np.median([own[s] / plain[s] for s in own.keys() & plain.keys()]))


def at_equal_compute(runs: Lines, curves: Lines, cell: str, rule: str, metric: str) -> Paired:
    """A rule, stopped when it has cost what the baseline costs in all its steps, against the baseline's end.

    Its learning rate was on the way down to the end of all steps, so that this is a lower bound of what a run of that
    length would give. A rule that costs less than the baseline is taken at its end.
    """
    ratio = cost(runs, cell, rule)
    stopped = {}
    for seed in values(runs, cell, rule, metric):
        points = [p for p in curves if p["cell"] == cell and p["rule"] == rule and int(p["seed"]) == seed]
        steps = [float(p["step"]) for p in points]
        stopped[seed] = float(np.interp(steps[-1] / max(ratio, 1.0), steps, [float(p[metric]) for p in points]))
    return pair(stopped, values(runs, cell, "baseline", metric), values(runs, cell, "oracle", metric))
