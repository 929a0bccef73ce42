"""Typed keys: a dataclass whose fields carry bounds and a meaning, filled from a YAML file and from key=value.

A configuration is a dataclass of `key` and `section` fields. `load` fills and checks it: unknown keys, types, bounds,
and what the method ``problems`` of any section says of keys that must fit together: sentences that begin with a key.
All that is wrong is listed at once.
"""

import copy
import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import asdict, field, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from recipes.errors import ConfigError, listing

LONGEST_NAME = 100  # letters of a key called `name`, which becomes a folder's
MISSING = "???"  # a key that has no value; OmegaConf's own mark
T = TypeVar("T")


class Bounds(NamedTuple):
    """Bounds of a number, or of every number in a list; None: there is none."""

    least: float | None = None
    more_than: float | None = None
    most: float | None = None
    less_than: float | None = None

    def violations(self, value: float) -> list[str]:
        """What a number must be and is not: "at least 1"."""
        limits = zip(self, (operator.ge, operator.gt, operator.le, operator.lt), self.words(), strict=True)
        return [words for limit, holds, words in limits if limit is not None and not holds(value, limit)]

    def words(self) -> list[str]:
        """Each bound in words, the absent ones too."""
        kinds = ("at least", "more than", "at most", "less than")
        return [f"{kind} {limit}" for kind, limit in zip(kinds, self, strict=True)]

    def __str__(self) -> str:
        return ", ".join(words for words, limit in zip(self.words(), self, strict=True) if limit is not None)


class Key(NamedTuple):
    """What a field says of itself."""

    meaning: str = ""
    bounds: Bounds = Bounds()


def key(
    default: Any = MISSING,
    meaning: str = "",
    *,
    least: float | None = None,
    more_than: float | None = None,
    most: float | None = None,
    less_than: float | None = None,
) -> Any:
    """Make a field of a dataclass.

    Args:
        default: Its value where none is given; without one the key is required.
        meaning: What it is, with its unit: the text of ``--help``.
        least, more_than, most, less_than: Bounds of the number, or of each number of a list.
    """
    metadata = {"key": Key(meaning, Bounds(least, more_than, most, less_than))}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(kind: Any, meaning: str = "") -> Any:
    """Make a field that is a dataclass of keys itself; ``kind`` is the dataclass, or a function that makes one."""
    return field(default_factory=kind, metadata={"key": Key(meaning)})


def load(kind: type[T], path: str | Path | None = None, overrides: Sequence[str] = (), base: T | None = None) -> T:
    """Read a configuration file, apply overrides, and check the result.

    Values may name other keys (``${train.steps}``). Resolvers (``${oc.env:HOME}``) are refused, also in a user's own
    file: a run's configuration is copied into its checkpoints, which others load, and must mean the same for them.

    Args:
        kind: The dataclass.
        path: YAML file with any of its keys; None: there is none.
        overrides: ``key=value`` pairs, nested keys joined by dots: ``train.steps=100``.
        base: Defaults in place of those of the dataclass.

    Raises:
        ConfigError: The message lists every problem, with file and key.
    """
    config = fill(kind, path, overrides, base)
    check(config)
    return config


def fill(kind: type[T], path: str | Path | None = None, overrides: Sequence[str] = (), base: T | None = None) -> T:
    """`load` without the check of bounds, for whoever has still to change a value."""
    if path is None and not overrides and base is None:
        filled: Any = kind()
        missing = [name for name, value in flat(as_dict(filled)).items() if value == MISSING]
    else:
        filled, missing = _merging().merged(kind if base is None else base, path, overrides)
    if missing:
        meanings = {name: about.meaning for name, _, _, about in walk(kind)}
        lines = [f"{name}= is missing: {meanings.get(name) or 'expected a value'}" for name in missing]
        raise ConfigError(listing("the configuration lacks", lines))
    return filled


def check(config: Any) -> None:
    """Raise a ConfigError that lists every value that cannot work."""
    if sentences := problems(config):
        raise ConfigError(listing("the configuration cannot be run:", sentences))


def problems(config: Any, prefix: str = "") -> list[str]:
    """What is wrong with a configuration.

    Args:
        config: An instance of a dataclass of keys.
        prefix: What its keys begin with.

    Returns:
        A sentence for each value out of its bounds, and what the sections say of keys that do not fit together: a
        section whose own keys are out of bounds is not asked.
    """
    own, nested = [], []
    for f in fields(config):
        name, value = prefix + f.name, getattr(config, f.name)
        about = f.metadata.get("key", Key())
        if is_dataclass(value):
            nested += problems(value, f"{name}.")
        elif isinstance(value, dict):
            for part, content in value.items():
                if is_dataclass(content):
                    nested += problems(content, f"{name}.{part}.")
                else:
                    own += _value_problems(f"{name}.{part}", content, about.bounds)
        else:
            for item in value if isinstance(value, list | tuple) else [value]:
                own += _value_problems(name, item, about.bounds)
    together = [] if own or not hasattr(config, "problems") else list(config.problems())
    return own + nested + [prefix + sentence for sentence in together]


def walk(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any, Key]]:
    """Every key of a dataclass: its dotted name, type, default and `Key`; of a mapping of sections under ``NAME``."""
    instance = kind() if isinstance(kind, type) else kind
    for f in fields(instance):
        name, default = prefix + f.name, getattr(instance, f.name)
        about = f.metadata.get("key", Key())
        values = getattr(f.type, "__args__", ())
        if is_dataclass(default):
            yield from walk(default, f"{name}.")
        elif getattr(f.type, "__origin__", None) is dict and is_dataclass(values[1]):
            yield from walk(values[1], f"{name}.NAME.")
        else:
            yield name, f.type, default, about


def save(config: Any, path: Path) -> None:
    """Write a whole configuration as YAML; `load` reads it back."""
    path.write_text(as_yaml(config), encoding="utf-8")


def as_yaml(config: Any) -> str:
    """A whole configuration as YAML."""
    return str(_merging().as_yaml(as_dict(config)))


def as_dict(config: Any) -> dict[str, Any]:
    """Nested dictionaries of plain values."""
    return asdict(config, dict_factory=lambda pairs: {name: _plain(value) for name, value in pairs})


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, its keys joined by dots."""
    if not isinstance(tree, dict):
        return {prefix: list(tree) if isinstance(tree, tuple) else tree}
    return {k: v for key, sub in tree.items() for k, v in flat(sub, f"{prefix}.{key}" if prefix else str(key)).items()}


def differences(old: Any, new: Any) -> list[str]:
    """Keys whose values differ, as ``key: old -> new``."""
    a, b = flat(as_dict(old)), flat(as_dict(new))
    return [f"{name}: {a.get(name)} -> {b.get(name)}" for name in a | b if a.get(name) != b.get(name)]


def _value_problems(name: str, value: Any, bounds: Bounds) -> list[str]:
    if isinstance(value, str):
        if not value:
            return [f"{name}= is empty: give it a value, or leave it out"]
        if "\0" in value:
            return [f"{name}={value!r} holds a character that no path can have"]
        if name.rpartition(".")[2] == "name" and len(value) > LONGEST_NAME:
            return [f"{name} has {len(value)} letters, more than {LONGEST_NAME}"]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, float) and not math.isfinite(value):
            return [f"{name}={value} must be a finite number"]
        return [f"{name}={value!r:.40} must be {bound}" for bound in bounds.violations(value)]
    return []


def _merging() -> Any:
    """What needs OmegaConf; a command that is called without keys does not."""
    try:
        from recipes import merging
    except ModuleNotFoundError as error:
        raise ConfigError(f"files, key=value and --dry-run need {error.name}: pip install omegaconf") from None
    return merging
