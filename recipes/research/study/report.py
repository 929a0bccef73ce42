"""The report of a study: tables in Markdown, and plots."""

import math
from pathlib import Path

from recipes.research.study import plots
from recipes.research.study.config import StudyConfig
from recipes.research.study.summary import (
    AIM,
    MARGIN,
    Lines,
    Paired,
    at_equal_compute,
    compare,
    cost,
    metric_of,
    rules_there,
)
from recipes.research.study.table import CURVES, RUNS, read

TABLES = "tables.md"


def write(study: StudyConfig, out: Path) -> list[Path]:
    """Write tables.md and the plots beside the CSV files; what has not run yet is left out."""
    runs, curves = read(out / RUNS), read(out / CURVES)
    hours = sum(float(line["cpu_seconds"]) for line in runs) / 3600
    total = f"{len(runs)} runs, {hours:.1f} CPU hours of training."
    lines = ["# The study's tables", "", f"{HEAD} {total}", ""]
    for name, cell in study.cells.items():
        rules = rules_there(runs, name, cell.rules)
        if rules:
            lines += [f"## {name}", "", describe(study, name), "", *_cell(runs, curves, name, rules, cell.kind), ""]
    lines += ["## Every kind of noise", "", *_kinds(study, runs), ""]
    (out / TABLES).write_text("\n".join(lines), encoding="utf-8")
    return [out / TABLES, *plots.draw(study, runs, curves, out)]


HEAD = (
    "Written by `python -m recipes.research.study --config recipes/configs/study.yaml`. Recall in percent at the end of "
    "training; differences from the baseline of the same seed with their 95% intervals (Student's t); *effect* is the "
    "mean difference over its standard deviation; *recovered* is the difference over that of the oracle; *cost* is CPU "
    "time over the baseline's; *kept* is the mean weight of the pairs that the noise is in, *aligned* the share of "
    "it on aligned ones."
)


def describe(study: StudyConfig, name: str) -> str:
    """A cell in words."""
    cell, world = study.cells[name], study.world(name)
    heard = f", sound tells {world.heard} of 3 attributes" if world.source == "features" else ""
    noise = f"{cell.share:.0%} {cell.kind}" if cell.share else "no noise"
    return f"World `{cell.world}`, {noise}, {world.clips} clips{heard}, {world.train.steps} steps."


def _cell(runs: Lines, curves: Lines, name: str, rules: list[str], kind: str) -> list[str]:
    metric = metric_of(kind)
    pair = "va" if metric.startswith("sound") else "vt"
    lines = [
        f"| rule | {metric} | difference | effect | recovered | at equal compute | best {metric.split()[0]} R@10 "
        "| text R@10 | sound R@10 | of rare | probe | kept | aligned | cost | seeds |",
        "|---|" + "---:|" * 14,
    ]
    for rule in rules:
        found = compare(runs, name, rule, metric)
        equal = at_equal_compute(runs, curves, name, rule, metric)
        others = [
            f"{100 * compare(runs, name, rule, m).mean:.1f}"
            for m in (f"best {metric.split()[0]} R@10", "text R@10", "sound R@10", "text R@10 rare", "probe")
        ]
        kept = [f"{compare(runs, name, rule, m).mean:.2f}" for m in (f"kept {pair}", f"kept aligned {pair}")]
        lines.append(
            f"| {rule} | {100 * found.mean:.1f} | {_difference(found)} | {_number(found.effect)} "
            f"| {_percent(found.recovered)} | {_difference(equal)} | {' | '.join(others)} | {' | '.join(kept)} "
            f"| {cost(runs, name, rule):.2f} | {found.seeds} |"
        )
    return lines


def _kinds(study: StudyConfig, runs: Lines) -> list[str]:
    """Which rules do what is asked of them, cell by cell."""
    cells = [name for name, cell in study.cells.items() if "oracle" in rules_there(runs, name, cell.rules)]
    rules = [r for r in study.cells["clean"].rules if r not in ("baseline", "oracle")] if "clean" in cells else []
    lines = [
        f"Asked beforehand: at least {AIM:.0%} of the distance from the baseline to the oracle, and without noise no "
        f"more than {100 * MARGIN:.0f} points below the baseline, in all clips and in those of rare concepts.",
        "",
        "| cell | judged by | baseline | oracle | " + " | ".join(rules) + " |",
        "|---|---|---:|---:|" + "---:|" * len(rules),
    ]
    for name in cells:
        cell = study.cells[name]
        for metric in ("text R@10", "text R@10 rare") if not cell.share else (metric_of(cell.kind),):
            ends = [f"{100 * compare(runs, name, rule, metric).mean:.1f}" for rule in ("baseline", "oracle")]
            found = [_verdict(runs, name, rule, metric, cell.share) for rule in rules]
            lines.append(f"| {name} | {metric} | {' | '.join(ends)} | {' | '.join(found)} |")
    return lines


def _verdict(runs: Lines, cell: str, rule: str, metric: str, share: float) -> str:
    if not rules_there(runs, cell, [rule]):
        return ""
    found = compare(runs, cell, rule, metric)
    if not share:
        text, good = f"{100 * found.difference:+.1f}", found.difference >= -MARGIN
    else:
        text, good = _percent(found.recovered), found.recovered >= AIM
    return f"**{text}**" if good else text


def _difference(found: Paired) -> str:
    if math.isnan(found.low) or found.low == found.high == 0:
        return f"{100 * found.difference:+.1f}"
    return f"{100 * found.difference:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.0f}%"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.1f}"
