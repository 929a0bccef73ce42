"""Evaluate a checkpoint on a downstream task.

python -m recipes.evaluate TASK checkpoint=runs/demo [data=DIR] [out=FILE.json]

Prints a Markdown table; out= writes the result as JSON, and the table beside it. See docs/evaluation.md.
"""

import sys
from functools import partial
from typing import Any

from recipes import cli, files
from recipes.evaluation import finetune, probe, results, retrieval, tagging

RESUME = {"resume": "go on where the work in its folder stopped"}


def run(task: Any, keys: results.EvaluationKeys, **flags: bool) -> None:
    """Evaluate, print the table, and write the result where `out` says.

    ``task`` is a module of recipes/evaluation with `Keys`, ``run(keys, **flags) -> Result`` and ``plan(keys) -> str``.
    """
    if keys.out:  # before the work
        files.check_place(keys.out)
        keys.out.parent.mkdir(parents=True, exist_ok=True)
    result = task.run(keys, **flags)
    if keys.out:
        result.write(keys.out)
    print(f"{result.table}\n\n{result.summary}")
    if result.skipped:
        print(f"{len(result.skipped)} clip(s) skipped, first: {result.skipped[0]}", file=sys.stderr)


def plan(task: Any, keys: results.EvaluationKeys) -> str:
    """Say what a task would do; an OSError if it could not write its result."""
    if keys.out:
        files.check_place(keys.out)
    return str(task.plan(keys))


def command(name: str, task: Any, **options: Any) -> cli.Command[Any]:
    """The command of a task."""
    about, work = (partial(part, task) for part in (plan, run))
    return cli.Command(f"recipes.evaluate {name}", task.__doc__, task.Keys, work, about, **options)


COMMAND = cli.Commands(
    "recipes.evaluate",
    __doc__,
    {
        "retrieval": command("retrieval", retrieval),
        "probe": command("probe", probe),
        "finetune": command("finetune", finetune, flags=RESUME, complete=finetune.complete),
        "tagging": command("tagging", tagging, flags=RESUME, complete=tagging.complete),
    },
)
main = COMMAND.main

if __name__ == "__main__":
    cli.exit(main)
