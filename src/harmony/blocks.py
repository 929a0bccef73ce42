"""The last block of an encoder, by the names of its parameters: where a Gram is cheap."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from torch import Tensor

LastPart = Literal["last_block", "last_projection"]
"""A part of an encoder that ``wrt`` takes by its name: the last block, or the last matrix of it."""

Blocks = dict[str, list[str]]
"""The numbered blocks of a list: for each number, the names of its parameters from there on."""


def last_part(part: LastPart, params: Mapping[str, Tensor]) -> list[str]:
    """Names of the parameters that a part of the encoder has.

    Args:
        part: ``"last_block"``, see ``last_block``; ``"last_projection"``, its last parameter
            of two axes or more.
        params: The parameters by name, in the order of the layers.

    Returns:
        Names, at least one, in the order of ``params``.

    Raises:
        ValueError: The names have no repeated blocks, or several lists of them; or the block has no matrix.

    Examples:
        >>> layers = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> params = dict(layers.named_parameters())
        >>> last_part("last_block", params), last_part("last_projection", params)
        (['2.weight', '2.bias'], ['2.weight'])
    """
    prefix = last_block(params)
    names = [name for name in params if name.startswith(prefix)]
    if part == "last_block":
        return names
    matrices = [name for name in names if params[name].ndim > 1]
    if not matrices:
        shapes = ", ".join(f"{name} {tuple(params[name].shape)}" for name in names)
        raise ValueError(
            f"the last projection is a parameter of two axes or more in the last block, and {prefix} has {shapes}. "
            "Give wrt a function of names."
        )
    return matrices[-1:]


def last_block(names: Iterable[str]) -> str:
    """What the names of the last block's parameters begin with, such as ``encoder.layer.11.`` in BERT.

    Blocks are numbered modules that repeat one another's parameters. Where a block is nothing but a list of blocks, a
    stage of a ResNet say, it is the last of these. Single layers count where there are no larger blocks.

    Args:
        names: Names of parameters.

    Returns:
        A prefix of names.

    Raises:
        ValueError: The names have no repeated blocks, or several lists of them.

    Examples:
        >>> last_block(f"layer{stage}.{block}.conv.weight" for stage in (1, 2, 3, 4) for block in (0, 1))
        'layer4.1.'
    """
    names = list(names)
    lists = _lists(names, of_layers=False) or _lists(names, of_layers=True)
    if len(lists) != 1:
        raise ValueError(_not_one(names, lists))
    ((prefix, blocks),) = lists.items()
    block, rests = prefix + _last(blocks), blocks[_last(blocks)]
    while inner := [item for item in _lists(rests, of_layers=False).items() if _size(item[1]) == len(rests)]:
        ((prefix, blocks),) = inner
        block, rests = block + prefix + _last(blocks), blocks[_last(blocks)]
    return block


class _Place(NamedTuple):
    """A number in a name, and what stands on both sides of it."""

    prefix: str
    number: str
    rest: str


def _places(name: str) -> Iterator[_Place]:
    """All numbers before a dot: that of encoder.layer.0.dense.weight, and the three of layer4.1.conv2.weight."""
    return (_Place(name[: n.start()], n[0], name[n.end() :]) for n in re.finditer(r"\d+\.", name))


def _lists(names: Iterable[str], of_layers: bool) -> dict[str, Blocks]:
    """The outermost lists of repeated blocks, or of single layers, by what precedes their numbers."""
    lists: dict[str, Blocks] = {}
    for name in names:
        for prefix, number, rest in _places(name):
            lists.setdefault(prefix, {}).setdefault(number, []).append(rest)
    repeated = {p: blocks for p, blocks in lists.items() if _repeats(blocks) and _is_of_layers(blocks) == of_layers}
    outermost = {next((place.prefix for place in _places(name) if place.prefix in repeated), None) for name in names}
    return {prefix: blocks for prefix, blocks in repeated.items() if prefix in outermost}


def _repeats(blocks: Blocks) -> bool:
    """Whether all parameters of the last block are also in one of the others."""
    last = _last(blocks)
    return any(set(blocks[last]) <= set(rests) for number, rests in blocks.items() if number != last)


def _is_of_layers(blocks: Blocks) -> bool:
    """Whether the last block has parameters of its own alone, and no modules."""
    return not any("." in rest for rest in blocks[_last(blocks)])


def _last(blocks: Blocks) -> str:
    return max(blocks, key=lambda number: int(number.rstrip(".")))


def _size(blocks: Blocks) -> int:
    return sum(map(len, blocks.values()))


def _not_one(names: list[str], lists: dict[str, Blocks]) -> str:
    """Why there is no last block, and what to write instead."""
    expected = "the last block is that of one list in the names, such as encoder.layer.0 to encoder.layer.11"
    if not lists:
        listed = ", ".join(names[:6]) + ", ..." * (len(names) > 6)
        return f"{expected}; got names without repeated blocks: {listed}. Give wrt a function of names."
    blocks = [prefix + _last(blocks) for prefix, blocks in lists.items()]
    listed = ", ".join(block.rstrip(".") for block in blocks)
    choice = f"wrt=lambda name: name.startswith({blocks[-1]!r})"
    return f"{expected}; got {len(lists)} lists, with last blocks {listed}. Choose one: {choice}."
