"""Study what harmonization buys: rules against noise whose truth is known, paired over seeds.

python -m recipes.research.study --config recipes/configs/study.yaml                          run what is missing, then report
python -m recipes.research.study --config recipes/configs/study.yaml --row center/cross_check/0  run one row again, and compare

Each run is a line of runs.csv and some of curves.csv, written as it finishes: stop at any time, and start again.
"""

import argparse
import logging
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from recipes.errors import ConfigError
from recipes.model.objective import Objective
from recipes.model.vatt import SIZES, VATT
from recipes.progress import progress_bar
from recipes.research.study import features, media, report, table
from recipes.research.study.clips import World
from recipes.research.study.config import StudyConfig, WorldConfig, load
from recipes.research.study.noise import corrupt
from recipes.research.study.rince import RobustObjective
from recipes.research.study.rules import RULES, Rule
from recipes.research.study.table import Row
from recipes.research.study.train import run

OUT = Path("docs/study")


def rows_of(study: StudyConfig) -> list[Row]:
    """All runs, cell by cell, and within a cell seed by seed: what stops early has whole pairs."""
    return [Row(name, rule, seed) for name, cell in study.cells.items() for seed in study.seeds for rule in cell.rules]


def run_row(study: StudyConfig, row: Row) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run one row; give its line of runs.csv and its lines of curves.csv. The same numbers at every call.

    Raises:
        ConfigError: The study has no such row.
    """
    if row.cell not in study.cells or row.rule not in study.cells[row.cell].rules:
        raise ConfigError(f"the study has no row {row}; its cells are {', '.join(study.cells)}")
    cell, config = study.cells[row.cell], study.world(row.cell)
    world = world_of(config, row.seed)
    noisy = corrupt(world.train, cell.kind, cell.share, world.rare, row.seed)
    outcome = run(world, noisy, RULES[row.rule], config.train, partial(model, config, world), row.seed)
    return table.run_line(row, cell, config, outcome), table.curve_lines(row, outcome)


def world_of(config: WorldConfig, seed: int) -> World:
    """The clips of a world. Media are the same for every seed, and kept for the next run; features are drawn anew."""
    if config.source == "features":
        return features.world(config.clips, config.test_clips, seed, config.heard)
    name = repr((config.corpus, config.clip, config.clips, config.test_clips))
    if name not in _media:
        _media.clear()
        _media[name] = media.world(config.corpus, config.clip, config.clips, config.test_clips)
    return _media[name]


_media: dict[str, World] = {}


def model(config: WorldConfig, world: World, rule: Rule) -> nn.ModuleDict:
    """The recipe's own model, with the objective of a rule."""
    objective = RobustObjective if rule.robust else Objective
    return nn.ModuleDict(
        {
            "model": VATT(config.model, config.clip, world.words),
            "objective": objective(config.objective, SIZES[config.model.size].output),
        }
    )


def run_missing(study: StudyConfig, out: Path, part: int = 0, parts: int = 1) -> None:
    """Run every row that is not in the table yet, or one of several parts of them."""
    done = {table.row_of(line) for line in table.read(out / table.RUNS)}
    missing = [row for row in rows_of(study)[part::parts] if row not in done]
    with progress_bar(total=len(missing), desc="study", unit="run") as bar:
        for row in missing:
            bar.set_postfix_str(str(row))
            line, curve = run_row(study, row)
            table.append(out / table.CURVES, curve)
            table.append(out / table.RUNS, [line])
            bar.update()


def compare(study: StudyConfig, out: Path, row: Row) -> int:
    """Run a row again, and say whether the table's numbers came out; 1 where they did not."""
    line, _ = run_row(study, row)
    print("\n".join(f"{name}: {value}" for name, value in line.items()))
    old = next((old for old in table.read(out / table.RUNS) if table.row_of(old) == row), None)
    if old is None:
        print(f"the table {out / table.RUNS} has no such row yet")
        return 0
    different = table.differences(old, line)
    print("\n".join(different) or f"the same numbers as in {out / table.RUNS}")
    return 1 if different else 0


def part_of(text: str) -> tuple[int, int]:
    """``i/n``, the i-th of n parts.

    Raises:
        ConfigError: It is not.
    """
    number = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if number is None or not 1 <= int(number[1]) <= int(number[2]):
        raise ConfigError(f"--part {text}: expected i/n with i from 1 to n, for example 2/3")
    return int(number[1]), int(number[2])


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.research.study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file, see recipes/research/study/config.py")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of tables and plots (default: %(default)s)")
    parser.add_argument("--row", help="CELL/RULE/SEED: run this one again, and compare it with the table")
    parser.add_argument("--part", default="1/1", help="i/n: run the i-th of n parts; start a process for each")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # sums over several threads differ in their last digit from machine to machine
    try:
        study = load(options.config)
        part, parts = part_of(options.part)
        if options.row:
            return compare(study, options.out, table.parse(options.row))
        run_missing(study, options.out, part - 1, parts)
        report.write(study, options.out)
    except (ConfigError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main())
