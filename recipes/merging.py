"""YAML files and key=value pairs, merged into a dataclass of keys by OmegaConf; what does not fit is said in words."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recipes.errors import ConfigError, listing

REFERENCE = re.compile(r"\$\{[\w.]+\}")  # names another key; whatever else begins with ${ calls a resolver
UNFIT = (OmegaConfBaseException, ValueError, TypeError, RecursionError, OverflowError)  # what values raise


def merged(start: Any, path: str | Path | None, overrides: Sequence[str]) -> tuple[Any, list[str]]:
    """Merge a file and overrides into a dataclass.

    Args:
        start: The dataclass, or an instance of it.
        path: YAML file; None: there is none.
        overrides: ``key=value`` pairs.

    Returns:
        The filled instance, and the names of the keys that have no value; the instance is None if there are any.

    Raises:
        ConfigError: What does not fit.
    """
    config = OmegaConf.structured(start)
    if path is not None:
        config = _merge(config, _file(Path(path)), str(path))
    config = _merge(config, _command_line(overrides), "command line")
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        return None if missing else OmegaConf.to_object(config), missing
    except UNFIT as error:  # ${...} that leads nowhere
        raise ConfigError(f"{path or 'command line'}: {_sentence(error)}") from None


def as_yaml(values: dict[str, Any]) -> str:
    """Nested dictionaries as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(values))


def _file(path: Path) -> Any:
    if not path.is_file():
        raise ConfigError(f"{path}: no such configuration file")
    try:
        return OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception as error:  # a YAML syntax error comes with its line
        raise ConfigError(f"{path}: not a YAML file of keys and values: {error}") from None


def _command_line(overrides: Sequence[str]) -> Any:
    values = OmegaConf.create()
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"override {override!r}: expected key=value, for example train.steps=100")
        if not override.partition("=")[2].strip():
            raise ConfigError(f"override {override!r}: it has no value; null stands for none")
        try:
            values.merge_with_dotlist([override])
        except Exception as error:  # YAML's, of a value
            raise ConfigError(f"command line: {override!r:.200}: {_sentence(error)}") from None
    return OmegaConf.to_container(values, resolve=False)


def _merge(config: Any, values: Any, source: str) -> Any:
    """Merge nested values into a configuration; where they do not fit, one by one, to list all that is wrong."""
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: expected keys and values; it holds {type(values).__name__}")
    if sentences := list(_resolver_calls(values)):
        raise ConfigError(listing(f"{source}:", sentences))
    try:
        return OmegaConf.merge(config, values)
    except UNFIT as error:
        sentences = [_sentence(error)]
    sentences_of_leaves = []
    for name, value in _leaves(values):
        nested: Any = value
        for part in reversed(name):
            nested = {part: nested}
        try:
            config = OmegaConf.merge(config, nested)
        except UNFIT as error:
            sentences_of_leaves.append(_sentence(error, ".".join(map(str, name))))
    sentences = list(dict.fromkeys(sentences_of_leaves)) or sentences  # an unknown section has many leaves
    raise ConfigError(f"{source}: {sentences[0]}" if len(sentences) == 1 else listing(f"{source}:", sentences))


def _leaves(tree: Any, name: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(tree, dict) and tree:
        for part, value in tree.items():
            yield from _leaves(value, (*name, part))
    else:
        yield name, tree


def _resolver_calls(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict):
        tree = [*tree.keys(), *tree.values()]
    if isinstance(tree, list):
        for value in tree:
            yield from _resolver_calls(value)
    elif isinstance(tree, str) and "${" in REFERENCE.sub("", tree):
        yield f"{tree!r} calls a resolver: write the value itself; only other keys may be named"


def _sentence(error: Exception, key: str = "") -> str:
    """One line for people: the key, and what is wrong with it; ``key`` is its name where the error does not know it."""
    name = getattr(error, "full_key", None) or key
    first = (str(error).splitlines() or [type(error).__name__])[0]
    if section := re.search(r"is not a subclass of (\w+)", first):
        first = f"expected keys of its own ({section[1]}), as in {name}.KEY=value"
    elif "is not a ListConfig" in first:
        first = f"expected a list, as in {name}=[A,B]"
    elif first.startswith("Incompatible value 'None'"):
        first = "expected a value, not null"
    return f"key {str(name)!r}: {first}" if name else first
