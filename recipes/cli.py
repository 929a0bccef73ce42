"""The one command line of all commands: python -m NAME [--config FILE] [--dry-run] key=value ..."""

import argparse
import logging
import os
import shutil
import signal
import sys
import textwrap
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, NoReturn, TypeVar, Union, get_args, get_origin

from recipes import keys as typed_keys
from recipes.errors import ConfigError, Failure, Interrupted
from recipes.keys import MISSING

WIDEST = 120  # columns of --help
T = TypeVar("T")
Main = Callable[[Sequence[str] | None], int]


@dataclass(frozen=True)
class Command(Generic[T]):
    """A command of one dataclass of keys.

    Attributes:
        name: As python -m calls it: "recipes.score".
        about: What it does: the docstring of its module.
        keys: The dataclass, see `recipes.keys`.
        run: Does the work, and prints its result; called with the keys and, by name, the flags. What it returns is the
            exit status, None for 0.
        plan: Says what would be done, for --dry-run; called with the keys. None: the resolved keys are all.
        flags: Meaning of each --flag, by its name.
        needs_config: Whether there is nothing sensible to do without --config.
        complete: Gives keys, filled in from the command line, the defaults that follow from them. Whatever the command
            line says goes before these.
    """

    name: str
    about: str
    keys: type[T]
    run: Callable[..., int | None]
    plan: Callable[[T], str] | None = None
    flags: Mapping[str, str] = field(default_factory=dict)
    needs_config: bool = False
    complete: Callable[[T], T] | None = None

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Run the command line; returns the exit status: 2 for an error, 128 + n for signal n."""
        options = self._parse(sys.argv[1:] if arguments is None else arguments)
        if options.help:
            print(self.help())
            return 0
        try:
            config = self.load(options.config, options.overrides)
            if options.dry_run:
                print(typed_keys.as_yaml(config))
                print("Nothing is wrong with it." if self.plan is None else self.plan(config))
                return 0
            status = self.run(config, **{flag: getattr(options, flag) for flag in self.flags})
        except Interrupted as error:
            print(error, file=sys.stderr)
            return error.code
        except (ValueError, OSError, Failure) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return status or 0

    def load(self, path: Path | None, overrides: Sequence[str]) -> T:
        """The keys of a command line; see `recipes.keys.load`."""
        if self.needs_config and path is None:
            raise ConfigError(f"{self.name} needs --config FILE: python -m {self.name} --config recipes/configs/...")
        base = None if self.complete is None else self.complete(typed_keys.fill(self.keys, path, overrides))
        return typed_keys.load(self.keys, path, overrides, base)

    def check(self, arguments: Sequence[str]) -> None:
        """Raise a ConfigError, or SystemExit for an unknown flag, if a command line is wrong; do nothing else."""
        options = self._parse(arguments)
        replace(self, complete=None).load(options.config, options.overrides)

    def help(self) -> str:
        """Usage, what the command does, and every key with its type, default, bounds and meaning."""
        flags = "".join(f" [--{flag}]" for flag in self.flags)
        config = "--config FILE" if self.needs_config else "[--config FILE]"
        lines = [f"usage: python -m {self.name} {config} [--dry-run]{flags} key=value ...", "", self.about.strip(), ""]
        options = {"config FILE": "YAML file of keys", "dry-run": "check everything, print the keys and the plan"}
        lines += [f"  {'--' + option:13}  {meaning}" for option, meaning in (options | dict(self.flags)).items()]
        return "\n".join([*lines, "", "keys:", *key_table(self.keys)])

    def _parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        parser = argparse.ArgumentParser(f"python -m {self.name}", add_help=False, allow_abbrev=False)
        parser.add_argument("--help", "-h", action="store_true")
        parser.add_argument("--config", type=Path)
        parser.add_argument("--dry-run", action="store_true")
        for flag in self.flags:
            parser.add_argument(f"--{flag}", action="store_true")
        parser.add_argument("overrides", nargs="*", metavar="key=value")
        return parser.parse_intermixed_args(arguments)


@dataclass(frozen=True)
class Commands:
    """Several commands under one name, each called by a word: python -m recipes.evaluate retrieval key=value ..."""

    name: str
    about: str
    commands: Mapping[str, Command[Any]]

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Run the command that the first argument names; returns the exit status."""
        word, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
        if word in self.commands:
            return self.commands[word].main(rest)
        if word not in ("--help", "-h"):
            words = ", ".join(self.commands)
            print(f"error: python -m {self.name} {word}: expected one of {words}", file=sys.stderr)
            return 2
        print(self.help())
        return 0

    def check(self, arguments: Sequence[str]) -> None:
        """See `Command.check`."""
        word = arguments[0] if arguments else ""
        if word not in self.commands:
            raise ConfigError(f"python -m {self.name} {word}: expected one of {', '.join(self.commands)}")
        self.commands[word].check(arguments[1:])

    def help(self) -> str:
        """What there is to call."""
        usage = f"usage: python -m {self.name} COMMAND [--help] key=value ..."
        width = max(map(len, self.commands))
        summaries = ((word, command.about.strip().splitlines()[0]) for word, command in self.commands.items())
        lines = [f"  {word:{width}}  {summary}" for word, summary in summaries]
        return "\n".join([usage, "", self.about.strip(), "", "commands:", *lines])


def exit(main: Main) -> NoReturn:
    """Run a command for the shell: what it logs goes to stderr, its status is that of the process."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        status = main(None)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads the output has enough, as in --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    sys.exit(status)


def key_table(kind: type[Any]) -> list[str]:
    """A line or more for each key: name, type and default; below them its meaning and bounds."""
    width = min(shutil.get_terminal_size().columns, WIDEST)
    lines = []
    for name, kind_of_value, default, about in typed_keys.walk(kind):
        value = "" if default == MISSING else f" = {_shown(default)}"
        text = "; ".join(filter(None, [about.meaning, str(about.bounds), "required" * (default == MISSING)]))
        lines.append(f"  {name}: {type_name(kind_of_value)}{value}")
        lines += textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return lines


def type_name(kind: Any) -> str:
    """A type for people: "int or null", "linear | cosine"."""
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return " | ".join(map(str, parts))
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join("null" if part is type(None) else type_name(part) for part in parts)
    if get_origin(kind) is tuple:
        return f"[{', '.join(map(type_name, parts))}]"
    if get_origin(kind) is list:
        return f"list of {type_name(parts[0])}"
    if get_origin(kind) is dict:
        return f"{type_name(parts[1])} by name"
    return {"str": "text", "Path": "path"}.get(
        getattr(kind, "__name__", str(kind)), getattr(kind, "__name__", str(kind))
    )


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
