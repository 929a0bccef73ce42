"""Measure what a harmonized step costs, what its cheap variants are worth, and what realigning and loading take.

Every suite is one module of this folder, named as here: its keys, and a function that runs it. It writes its tables,
CSV files and plots to runs/benchmark. The suites `step`, `kinds` and `realign` need no package of the recipe's data,
`gpu` none but torch.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from recipes import cli
from recipes.cli import Command, Commands

NAME = "recipes.research.benchmark"
SUITES = (
    "step",
    "kinds",
    "cheap",
    "gpu",
    "realign",
    "variants",
    "loader",
    "web_video",
    "options",
    "scaling",
    "startup",
)


class Suites(Mapping[str, Command[Any]]):
    """The commands of the suites by name; a suite is imported when it is called."""

    def __getitem__(self, name: str) -> Command[Any]:
        if name not in SUITES:
            raise KeyError(name)
        command: Command[Any] = import_module(f"{NAME}.{name}").COMMAND
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(SUITES)

    def __len__(self) -> int:
        return len(SUITES)


COMMAND = Commands(NAME, __doc__, Suites())
main = COMMAND.main

if __name__ == "__main__":
    cli.exit(main)
