"""The numbers of the cosines: as JSON takes them, as tables of words, as Markdown."""

from typing import Any, NamedTuple

from recipes.figures.dynamics.runs import BEFORE, Run
from recipes.figures.dynamics.summary import BLOCKS, FEWEST_BLOCKS, FEWEST_SAMPLES, compare, summarise
from recipes.training.dynamics import TRAINING

NOTES = {
    "numbers": (
        "Samples of one step, and of steps nearby, are not independent. The 95% intervals are by batch means: a run is "
        f"cut into at most {BLOCKS} blocks of consecutive steps, whose values are taken as independent, and Student's "
        "t is applied to them. A trend over the run counts as spread, so that they are rather too wide. There are none "
        f"of fewer than {FEWEST_BLOCKS} recorded intervals of steps. A curriculum's cosines are those of all samples, "
        "dropped ones included."
    ),
    "normality": (
        "Jarque and Bera's test, from skewness and kurtosis over the whole run. With so many samples it rejects the "
        "smallest deviation: a small p says that the distribution is not exactly normal, not that it is far from it. "
        "How far is said by the distance, the greatest difference between the cumulative distribution and that of the "
        "normal distribution of the same mean and standard deviation (0 to 1). The last two columns are of the same "
        f"test in each recorded interval of steps with at least {FEWEST_SAMPLES} samples: of normal samples about 95% "
        "pass at the 5% level, somewhat more where an interval has few; the fewer the samples, the larger the "
        "deviations that pass as well."
    ),
    "corpora": (
        "Intervals: percentile bootstrap over blocks of consecutive steps. The paper found the mean on YouTube8M to be "
        "30% smaller than on HowTo100M, a ratio of 0.7."
    ),
}
NUMBERS = ["samples", "mean", "95% interval", "negative", "95% interval", "std", "skew", "excess kurtosis"]


class Table(NamedTuple):
    """A table in words: the first two columns are names, the others numbers."""

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str


def summary(runs: list[Run], against: Run | None, name: str) -> dict[str, Any]:
    """What is written to dynamics.json.

    Args:
        runs: The runs of the panels.
        against: A run to compare the means of the others with, on another corpus for instance.
        name: The cosines that the panels show.

    Returns:
        {"before", "runs": one summary each, "against": that of the other run, "comparisons": means of each run and the
        other, "probes": summaries of the other cosines of the runs, "notes"}.
    """
    others = [(run, other) for run in runs for other in run.dynamics.names if other not in (name, TRAINING)]
    return {
        "before": BEFORE,
        "runs": [summarise(run, name) for run in runs],
        "against": None if against is None else summarise(against, name),
        "comparisons": [] if against is None else [compare(run, against, name) for run in runs],
        "probes": [summarise(run, other) for run, other in others],
        "notes": NOTES,
    }


def tables(summary: dict[str, Any]) -> list[Table]:
    """The numbers of the runs: their moments, and how near to normal they are."""
    other = summary["against"]
    runs = summary["runs"] + ([other] if other is not None and other not in summary["runs"] else [])
    tests = ["Jarque-Bera", "p", "distance from normal", "intervals of steps that pass", "samples in one"]
    rows = [[r["run"], r["mode"], *_numbers(r)] for r in runs]
    normality = [[r["run"], r["mode"], *_tests(r)] for r in runs]
    return [
        Table("In numbers", ["run", "mode", *NUMBERS], rows, NOTES["numbers"]),
        Table("How near to normal", ["run", "mode", *tests], normality, NOTES["normality"]),
    ]


def probe_tables(summary: dict[str, Any]) -> list[Table]:
    """The numbers of the probes; [] where no run has any."""
    rows = [[r["run"], r["name"], *_numbers(r)] for r in summary["probes"]]
    head = ["run", "part", *NUMBERS]
    return [Table("Where in the backbone, in numbers", head, rows, "Intervals as above.")] if rows else []


def sentence(comparison: dict[str, Any]) -> str:
    """A comparison of two means in words."""
    c, (mine, other) = comparison, comparison["means"]
    means = f"means {mine:.4f} and {other:.4f}, difference {c['difference']['value']:.4f}"
    means += _bracketed(c["difference"], ".4f")
    which = f"{c['run']} ({c['corpora'][0]}) against {c['against']} ({c['corpora'][1]})"
    if c["ratio"] is None:
        return f"{which}: {means}; no ratio: {c['reason']}."
    ratio = c["ratio"]["value"]
    words = f", {abs(1 - ratio):.0%} {'below' if ratio < 1 else 'above'}" if min(mine, other) > 0 else ""
    return f"{which}: {means}; ratio {ratio:.2f}{_bracketed(c['ratio'], '.2f')}{words}."


def markdown(summary: dict[str, Any]) -> str:
    """What is written to dynamics.md."""
    parts = [
        "# Agreement of gradients over pre-training",
        f"cos(g_va, g_vt) over {summary['runs'][0]['over']}. {BEFORE}",
    ]
    parts += map(_markdown_table, tables(summary))
    if summary["comparisons"]:
        lines = "\n".join(f"- {sentence(c)}" for c in summary["comparisons"])
        parts += ["## Ratio of means", lines, NOTES["corpora"]]
    parts += map(_markdown_table, probe_tables(summary))
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    ruler = ["---"] * 2 + ["---:"] * (len(table.head) - 2)
    lines = "\n".join(f"| {' | '.join(cells)} |" for cells in (table.head, ruler, *table.rows))
    return f"## {table.title}\n\n{lines}\n\n{table.note}"


def _numbers(r: dict[str, Any]) -> list[str]:
    return [
        f"{r['samples']:,}", f"{r['mean']['value']:.4f}", _interval(r["mean"], ".4f"), f"{r['negative']['value']:.1%}",
        _interval(r["negative"], ".1%"), *(_number(r[k], ".3f") for k in ("std", "skew", "excess_kurtosis")),
    ]  # fmt: skip


def _tests(r: dict[str, Any]) -> list[str]:
    n = r["normality"]
    share = "–" if n["intervals_normal"] is None else f"{n['intervals_normal']:.0%} of {n['intervals_tested']}"
    return [
        _number(n["jarque_bera"], ".4g"), _p(n["p"]), _number(n["kolmogorov_distance"], ".4f"), share,
        _number(n["samples_per_interval"], ".0f"),
    ]  # fmt: skip


def _p(value: float | None) -> str:
    """A p-value; 0 is one too small for a float."""
    return "< 1e-300" if value == 0 else _number(value, ".2g")


def _bracketed(found: dict[str, Any], form: str) -> str:
    return f" (95% interval {_interval(found, form)})" if found["interval"] else ""


def _interval(found: dict[str, Any], form: str) -> str:
    return "–" if found["interval"] is None else " to ".join(format(x, form) for x in found["interval"])


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
