"""Study what harmonization buys: rules against noise with known truth, paired over seeds.

It runs what is missing in the tables, then writes the report:
    python -m recipes.research.study --config recipes/configs/study.yaml

It runs one row again and compares it with the table:
    python -m recipes.research.study --config recipes/configs/study.yaml row=center/cross_check/0 out=docs/study/next

Each run appends a line to runs.csv and some to curves.csv as it finishes: stop at any time, and start again.
"""

from typing import Any

import torch

from recipes import cli
from recipes.cli import Command
from recipes.progress import progress_bar
from recipes.research.benchmark.tables import as_cell
from recipes.research.study import features, media, report, table
from recipes.research.study.clips import World
from recipes.research.study.config import StudyConfig, WorldConfig
from recipes.research.study.noise import corrupt
from recipes.research.study.rules import RULES
from recipes.research.study.table import CURVES, RUNS, Row
from recipes.research.study.train import train


def run(study: StudyConfig) -> int:
    """Run what is missing and report; or run one row again and compare it with the table, 1 if the numbers differ."""
    torch.set_num_threads(1)  # the last digit of a sum over several threads differs from machine to machine
    if study.row is not None:
        return compare_row(study, Row.parse(study.row))
    run_missing(study)
    print("\n".join(map(str, report.write_report(study, study.out))))
    return 0


def run_missing(study: StudyConfig) -> None:
    """Run every row of this part that is not in the table yet."""
    rows = missing_rows(study)
    with progress_bar(total=len(rows), desc="study", unit="run") as bar:
        for row in rows:
            bar.set_postfix_str(str(row))
            line, curve = run_row(study, row)
            table.append_lines(study.out / CURVES, curve)
            table.append_lines(study.out / RUNS, [line])
            bar.update()


def missing_rows(study: StudyConfig) -> list[Row]:
    done = {Row.of_line(line) for line in table.read_lines(study.out / RUNS)}
    return [row for row in study.rows_of_part() if row not in done]


def compare_row(study: StudyConfig, row: Row) -> int:
    """Run a row again, and print whether the numbers equal the table's; 1 if they do not."""
    line, _ = run_row(study, row)
    print("\n".join(f"{name}: {as_cell(value)}" for name, value in line.items()))
    path = study.out / RUNS
    old = next((old for old in table.read_lines(path) if Row.of_line(old) == row), None)
    if old is None:
        print(f"{path} has no such row yet")
        return 0
    different = table.differences(old, line)
    print("\n".join(different) or f"the same numbers as in {path}")
    return 1 if different else 0


def run_row(study: StudyConfig, row: Row) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run one row: its line of runs.csv, and its lines of curves.csv. The same numbers at every call."""
    cell, config = study.cells[row.cell], study.world(row.cell)
    world = make_world(config, row.seed)
    noisy = corrupt(world.train, cell.kind, cell.share, world.rare, row.seed, cell.trusted)
    outcome = train(world, noisy, RULES[row.rule], config, row.seed)
    setting = {"world": cell.world, "kind": cell.kind, "share": cell.share, "clips": config.clips}
    setting |= {"trusted": cell.trusted} if cell.trusted else {}
    setting |= {"audio_attributes": config.audio_attributes, "steps": config.train.steps}
    last = {name: value for name, value in outcome.curve[-1].items() if name != "step"}
    best = {f"best {m} R@10": max(point[f"{m} R@10"] for point in outcome.curve) for m in ("text", "sound")}
    line = row._asdict() | setting | last | best | outcome.final | {"torch": torch.__version__.split("+")[0]}
    return line, [row._asdict() | point for point in outcome.curve]


def make_world(config: WorldConfig, seed: int) -> World:
    """The clips of a world. Features are drawn for each seed; media are the same for all seeds, and kept in memory."""
    if config.source == "features":
        return features.world(config.clips, config.test_clips, seed, config.audio_attributes)
    name = repr((config.corpus, config.clip, config.clips, config.test_clips))
    if name not in _media:
        _media.clear()
        _media[name] = media.world(config.corpus, config.clip, config.clips, config.test_clips)
    return _media[name]


_media: dict[str, World] = {}  # the latest one, by its configuration


def plan(study: StudyConfig) -> str:
    if study.row is not None:
        return f"one run: {study.row}, compared with {study.out / RUNS}"
    missing = [row.cell for row in missing_rows(study)]
    lines = [f"{missing.count(name):5} of {name}: {report.describe(study, name)}" for name in study.cells]
    return "\n".join([f"{len(missing)} runs of part {study.part} are missing in {study.out / RUNS}:", *lines])


COMMAND = Command("recipes.research.study", str(__doc__), StudyConfig, run, plan, needs_config=True)
main = COMMAND.main

if __name__ == "__main__":
    cli.exit(main)
