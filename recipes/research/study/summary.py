"""Comparisons with the baseline, paired over seeds, from the tables of a study."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from recipes.research.study.table import Line

# Set before the first run: how far below the baseline a rule may be without noise, and what it has to recover with it.
MARGIN = 0.02  # of a recall
AIM = 0.5  # of the distance from the baseline to the oracle

TEXT = "text R@10"
METRICS = {"sound": "sound R@10", "silence": "sound R@10", "text_not_of_rare": "text R@10 rare"}  # other kinds: TEXT


class Comparison(NamedTuple):
    """A rule against the baseline, over the seeds that both have."""

    mean: float  # of the rule
    difference: float  # mean, from the baseline of the same seed
    low: float  # 95% interval, by Student's t
    high: float
    effect: float  # difference over its standard deviation (Cohen's d of paired samples)
    recovered: float  # difference over that of the oracle; NaN where the oracle equals the baseline
    seeds: int  # how many


def metric_of(kind: str) -> str:
    """The metric that judges a kind of noise: retrieval by the modality that it corrupts, or of rare concepts."""
    return METRICS.get(kind, TEXT)


def compare(rule: dict[int, float], baseline: dict[int, float], oracle: dict[int, float]) -> Comparison:
    """Compare values by seed.

    Examples:
        >>> result = compare({0: 0.3, 1: 0.5}, {0: 0.2, 1: 0.3}, {0: 0.5, 1: 0.6})
        >>> round(result.difference, 3), round(result.recovered, 3), result.seeds
        (0.15, 0.5, 2)
    """
    seeds = sorted(rule.keys() & baseline.keys())
    differences = np.array([rule[s] - baseline[s] for s in seeds])
    n, mean = len(seeds), float(differences.mean())
    deviation = float(differences.std(ddof=1)) if n > 1 else math.nan
    half = float(stats.t.ppf(0.975, n - 1)) * deviation / math.sqrt(n) if n > 1 else math.nan
    gaps = [oracle[s] - baseline[s] for s in sorted(oracle.keys() & baseline.keys())]
    gap = float(np.mean(gaps)) if gaps else 0.0
    return Comparison(
        mean=float(np.mean([rule[s] for s in seeds])),
        difference=mean,
        low=mean - half,
        high=mean + half,
        effect=mean / deviation if deviation else math.nan,
        recovered=mean / gap if gap > 1e-9 else math.nan,
        seeds=n,
    )


@dataclass(frozen=True)
class Results:
    """The lines of runs.csv and curves.csv."""

    runs: list[Line]
    curves: list[Line]

    def values(self, cell: str, rule: str, metric: str) -> dict[int, float]:
        return {
            int(line["seed"]): float(line[metric])
            for line in self.runs
            if line["cell"] == cell and line["rule"] == rule and line[metric] != ""
        }

    def rules(self, cell: str, rules: list[str]) -> list[str]:
        """The rules that have run with a seed that the baseline has, too."""
        seeds = self.values(cell, "baseline", TEXT).keys()
        return [rule for rule in rules if seeds & self.values(cell, rule, TEXT).keys()]

    def compare(self, cell: str, rule: str, metric: str) -> Comparison:
        """A rule against the baseline of its cell."""
        return compare(*(self.values(cell, name, metric) for name in (rule, "baseline", "oracle")))

    def cost(self, cell: str, rule: str) -> float:
        """CPU time of training over the baseline's: the median over the seeds."""
        own, baseline = (self.values(cell, name, "cpu_seconds") for name in (rule, "baseline"))
        return float(np.median([own[s] / baseline[s] for s in own.keys() & baseline.keys()]))

    def curve(self, cell: str, rule: str, metric: str) -> dict[int, dict[int, float]]:
        curve: dict[int, dict[int, float]] = {}
        for line in self.curves:
            if line["cell"] == cell and line["rule"] == rule:
                curve.setdefault(int(line["seed"]), {})[int(line["step"])] = float(line[metric])
        return curve

    def at_equal_compute(self, cell: str, rule: str, metric: str) -> Comparison:
        """A rule, stopped when it has cost as much as the whole baseline, against the end of the baseline.

        Its learning rate was still falling towards the end of all steps, so this is a lower bound for a run of that
        length. A rule that costs less than the baseline is taken at its end.
        """
        ratio = max(self.cost(cell, rule), 1.0)
        stopped = {
            seed: float(np.interp(max(curve) / ratio, list(curve), list(curve.values())))
            for seed, curve in self.curve(cell, rule, metric).items()
        }
        return compare(stopped, self.values(cell, "baseline", metric), self.values(cell, "oracle", metric))
