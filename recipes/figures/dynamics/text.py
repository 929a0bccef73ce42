"""The numbers of the cosines in words: dynamics.json and dynamics.md."""

from typing import Any

from recipes.evaluation.results import markdown as table
from recipes.figures.dynamics.numbers import BLOCKS, FEWEST_BLOCKS, FEWEST_SAMPLES, compare, summarise
from recipes.figures.dynamics.runs import Run
from recipes.training.dynamics import TRAINING

BEFORE = "Cosines are those before realignment, in every panel and every number."
NOTES = {
    "numbers": (
        "Samples of one step, and of steps nearby, are not independent. The 95% intervals are by batch means: a run is "
        f"cut into at most {BLOCKS} blocks of consecutive steps, and Student's t is applied to their values as if they "
        "were independent. A trend over the run counts as spread, so the intervals are rather too wide. A run with "
        f"fewer than {FEWEST_BLOCKS} recorded intervals of steps has none. The cosines of a curriculum are those of "
        "all samples, dropped ones included."
    ),
    "normality": (
        "Jarque and Bera's test takes skewness and kurtosis over the whole run. With so many samples it rejects the "
        "smallest deviation: a small p says that the distribution is not exactly normal, not that it is far from it. "
        "The distance says how far it is: the greatest difference between the cumulative distribution and that of the "
        "normal distribution of the same mean and standard deviation (0 to 1). The last two columns apply the same "
        f"test to each recorded interval of steps with at least {FEWEST_SAMPLES} samples. About 95% of intervals of "
        "normal samples pass at the 5% level, somewhat more where an interval has few samples; the fewer the samples, "
        "the larger the deviations that pass as well."
    ),
    "corpora": (
        "Intervals: percentile bootstrap over blocks of consecutive steps. The paper found the mean on YouTube8M to be "
        "30% smaller than on HowTo100M, a ratio of 0.7."
    ),
}


def summary(runs: list[Run], against: Run | None, name: str) -> dict[str, Any]:
    """What is written to dynamics.json: one name in runs, compared with a run on another corpus, and the probes."""
    probes = [(run, other) for run in runs for other in run.dynamics.names if other not in (name, TRAINING)]
    return {
        "before": BEFORE,
        "runs": [summarise(run, name) for run in runs],
        "against": None if against is None else summarise(against, name),
        "comparisons": [] if against is None else [compare(run, against, name) for run in runs],
        "probes": [summarise(run, other) for run, other in probes],
        "notes": NOTES,
    }


def markdown(summary: dict[str, Any]) -> str:
    """What is written to dynamics.md."""
    runs, against = summary["runs"], summary["against"]
    if against is not None and against not in runs:
        runs = [*runs, against]
    parts = [
        "# Agreement of gradients over pre-training",
        f"cos(g_va, g_vt) over {runs[0]['over']}. {BEFORE}",
        "## In numbers",
        table([{"run": r["run"], "mode": r["mode"]} | _numbers(r) for r in runs]),
        NOTES["numbers"],
        "## How near to normal",
        table([{"run": r["run"], "mode": r["mode"]} | _tests(r["normality"]) for r in runs]),
        NOTES["normality"],
    ]
    if summary["comparisons"]:
        parts += ["## Ratio of means", "\n".join(f"- {sentence(c)}" for c in summary["comparisons"]), NOTES["corpora"]]
    if summary["probes"]:
        rows = [{"run": r["run"], "part": r["name"]} | _numbers(r) for r in summary["probes"]]
        parts += ["## Where in the backbone", table(rows), "Intervals as above."]
    return "\n\n".join(parts) + "\n"


def sentence(comparison: dict[str, Any]) -> str:
    """A comparison of two means in words."""
    c, (mine, other) = comparison, comparison["means"]
    means = f"means {mine:.4f} and {other:.4f}, difference {c['difference']['value']:.4f}"
    means += _in_brackets(c["difference"], ".4f")
    runs = f"{c['run']} ({c['corpora'][0]}) against {c['against']} ({c['corpora'][1]})"
    if c["ratio"] is None:
        return f"{runs}: {means}; no ratio: {c['reason']}."
    ratio = c["ratio"]["value"]
    words = f", {abs(1 - ratio):.0%} {'below' if ratio < 1 else 'above'}" if min(mine, other) > 0 else ""
    return f"{runs}: {means}; ratio {ratio:.2f}{_in_brackets(c['ratio'], '.2f')}{words}."


def _numbers(r: dict[str, Any]) -> dict[str, str]:
    return {
        "samples": f"{r['samples']:,}",
        "mean": f"{r['mean']['value']:.4f}",
        "95% interval": _interval(r["mean"], ".4f"),
        "negative": f"{r['negative']['value']:.1%}",
        "95% interval of the share": _interval(r["negative"], ".1%"),
        "std": _number(r["std"], ".3f"),
        "skew": _number(r["skew"], ".3f"),
        "excess kurtosis": _number(r["excess_kurtosis"], ".3f"),
    }


def _tests(n: dict[str, Any]) -> dict[str, str]:
    share = "–" if n["intervals_normal"] is None else f"{n['intervals_normal']:.0%} of {n['intervals_tested']}"
    return {
        "Jarque-Bera": _number(n["jarque_bera"], ".4g"),
        "p": "< 1e-300" if n["p"] == 0 else _number(n["p"], ".2g"),  # 0: too small for a float
        "distance from normal": _number(n["kolmogorov_distance"], ".4f"),
        "intervals of steps that pass": share,
        "samples in one": _number(n["samples_per_interval"], ".0f"),
    }


def _in_brackets(result: dict[str, Any], form: str) -> str:
    return f" (95% interval {_interval(result, form)})" if result["interval"] else ""


def _interval(result: dict[str, Any], form: str) -> str:
    return "–" if result["interval"] is None else " to ".join(format(x, form) for x in result["interval"])


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
