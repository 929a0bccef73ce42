"""The report of a study: tables in Markdown, and plots. It leaves out what has not run yet."""

import math
from pathlib import Path

from recipes.research.benchmark.tables import markdown
from recipes.research.study import plots
from recipes.research.study.config import StudyConfig
from recipes.research.study.summary import AIM, MARGIN, Comparison, Results, metric_of
from recipes.research.study.table import CURVES, RUNS, read_lines

TABLES = "tables.md"
HEAD = (
    "Written by `python -m recipes.research.study --config recipes/configs/study.yaml`. Recall in percent at the end "
    "of training; differences from the baseline of the same seed with their 95% intervals (Student's t). *Effect* is "
    "the mean difference over its standard deviation, *recovered* the difference over that of the oracle, *cost* the "
    "CPU time over the baseline's. *Kept* is the mean weight of the pairs that have the noise, *aligned* the share of "
    "it on aligned pairs."
)


def write_report(study: StudyConfig, out: Path) -> list[Path]:
    """Write tables.md and the plots beside the CSV files; returns the files."""
    results = Results(read_lines(out / RUNS), read_lines(out / CURVES))
    hours = sum(float(line["cpu_seconds"]) for line in results.runs) / 3600
    lines = ["# Tables of the study", "", f"{HEAD} {len(results.runs)} runs, {hours:.1f} CPU hours of training.", ""]
    for name, cell in study.cells.items():
        rules = results.rules(name, cell.rules)
        if rules:
            rows = [_rule_row(results, name, rule, metric_of(cell.kind)) for rule in rules]
            lines += [f"## {name}", "", describe(study, name), "", *_markdown(rows), ""]
    lines += ["## Every kind of noise", "", *_overview(study, results), ""]
    (out / TABLES).write_text("\n".join(lines), encoding="utf-8")
    return [out / TABLES, *plots.draw(study, results, out)]


def describe(study: StudyConfig, name: str) -> str:
    cell, world = study.cells[name], study.world(name)
    sound = f", sound carries {world.audio_attributes} of 3 attributes" if world.source == "features" else ""
    noise = f"{cell.share:.0%} {cell.kind}" if cell.share else "no noise"
    return f"World `{cell.world}`, {noise}, {world.clips} clips{sound}, {world.train.steps} steps."


def _rule_row(results: Results, cell: str, rule: str, metric: str) -> dict[str, str]:
    """One row of a cell's table, by column."""
    modality = metric.split()[0]
    pair = "va" if modality == "sound" else "vt"

    def mean(name: str) -> float:
        return results.compare(cell, rule, name).mean

    comparison = results.compare(cell, rule, metric)
    return {
        "rule": rule,
        f"judged by {metric}": f"{100 * comparison.mean:.1f}",
        "difference": _difference(comparison),
        "effect": "" if math.isnan(comparison.effect) else f"{comparison.effect:.1f}",
        "recovered": _percent(comparison.recovered),
        "at equal compute": _difference(results.at_equal_compute(cell, rule, metric)),
        f"best {modality} R@10": f"{100 * mean(f'best {modality} R@10'):.1f}",
        "text R@10": f"{100 * mean('text R@10'):.1f}",
        "sound R@10": f"{100 * mean('sound R@10'):.1f}",
        "of rare": f"{100 * mean('text R@10 rare'):.1f}",
        "probe": f"{100 * mean('probe'):.1f}",
        "kept": f"{mean(f'kept {pair}'):.2f}",
        "aligned": f"{mean(f'kept aligned {pair}'):.2f}",
        "cost": f"{results.cost(cell, rule):.2f}",
        "seeds": str(comparison.seeds),
    }


def _overview(study: StudyConfig, results: Results) -> list[str]:
    """Which rules reach the aim, cell by cell."""
    cells = [name for name, cell in study.cells.items() if "oracle" in results.rules(name, cell.rules)]
    rules = [r for r in study.cells["clean"].rules if r not in ("baseline", "oracle")] if "clean" in cells else []
    rows = []
    for name in cells:
        cell = study.cells[name]
        for metric in (metric_of(cell.kind),) if cell.share else ("text R@10", "text R@10 rare"):
            ends = {rule: f"{100 * results.compare(name, rule, metric).mean:.1f}" for rule in ("baseline", "oracle")}
            verdicts = {rule: _verdict(results, name, rule, metric, cell.share) for rule in rules}
            rows.append({"cell": name, "judged by": metric} | ends | verdicts)
    aim = (
        f"The aim, set beforehand: at least {AIM:.0%} of the distance from the baseline to the oracle; and without "
        f"noise at most {100 * MARGIN:.0f} points below the baseline, over all clips and over those of rare concepts."
    )
    return [aim, "", *_markdown(rows)]


def _verdict(results: Results, cell: str, rule: str, metric: str, share: float) -> str:
    """What a rule recovers, or without noise its difference; bold where it reaches the aim."""
    if not results.rules(cell, [rule]):
        return ""
    comparison = results.compare(cell, rule, metric)
    if share:
        text, reached = _percent(comparison.recovered), comparison.recovered >= AIM
    else:
        text, reached = f"{100 * comparison.difference:+.1f}", comparison.difference >= -MARGIN
    return f"**{text}**" if reached else text


def _markdown(rows: list[dict[str, str]]) -> list[str]:
    """A table whose first column is text and whose others are numbers."""
    return markdown(list(rows[0]), [list(row.values()) for row in rows]) if rows else []


def _difference(comparison: Comparison) -> str:
    text = f"{100 * comparison.difference:+.1f}"
    if math.isnan(comparison.low) or comparison.low == comparison.high == 0:
        return text
    return f"{text} ({100 * comparison.low:+.1f} to {100 * comparison.high:+.1f})"


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.0f}%"
