"""Evaluate a checkpoint on a downstream task.

python -m recipes.evaluate TASK --checkpoint runs/demo [--data DIR] [--out FILE.json]

Prints a Markdown table; --out writes the result as JSON, and the table beside it. See docs/evaluation.md.
"""

import argparse
import logging
import sys
from pathlib import Path

from recipes.data.workers import WorkerError
from recipes.errors import ConfigError
from recipes.evaluation import finetune, probe, results, retrieval, tagging
from recipes.restore import add_options

# A task is a module of recipes/evaluation with NAME, HELP, add_options(parser) and run(options) -> Result.
TASKS = (retrieval, probe, finetune, tagging)


def command_line() -> argparse.ArgumentParser:
    """One command for each task, with the options that all have."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="TASK")
    for task in TASKS:
        command = commands.add_parser(task.NAME, help=task.HELP, description=task.__doc__)
        command.add_argument("--checkpoint", type=Path, required=True, help="a run's folder, or one of its checkpoints")
        command.add_argument("--data", help="what to evaluate on; default: what the run held out")
        command.add_argument("--out", type=Path, help="write the result as JSON, and its table beside it (.md)")
        command.add_argument(
            "--allow-leakage", action="store_true", help="evaluate on clips that were trained on, and mark the result"
        )
        add_options(command)
        task.add_options(command)
        command.set_defaults(run=task.run)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = command_line()
    options = parser.parse_args(arguments)
    if options.out and options.out.suffix != ".json":
        parser.error(f"--out {options.out}: expected a name that ends in .json")
    try:
        if options.out:  # before the work
            options.out.parent.mkdir(parents=True, exist_ok=True)
        result = options.run(options)
        if options.out:
            results.write(result, options.out)
    except (ConfigError, OSError, ValueError, WorkerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{result.table}\n\n{result.summary}")
    if result.skipped:
        print(f"{len(result.skipped)} clip(s) skipped, first: {result.skipped[0]}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main())
