"""Architectures of transformers, from three lists."""

from collections.abc import Callable
from functools import partial

from tests.harmony.third_party import transformers_sound, transformers_text, transformers_vision
from tests.harmony.third_party.architecture import (
    Architecture,
    Builder,
)
from tests.harmony.third_party.transformers_recipe import (
    Recipe,
    with_dropout,
)

RECIPES: dict[str, Callable[[], Recipe]] = (
    transformers_text.RECIPES | transformers_vision.RECIPES | transformers_sound.RECIPES
)


def build(name: str, attention: str = "", p: float = 0.0) -> Architecture:
    """The architecture of a recipe, with this implementation of attention (its own, by default) and dropout."""
    cls, config, *rest = RECIPES[name]()
    if attention:
        config._attn_implementation = attention
    return Architecture(cls(with_dropout(config, p)), *rest)


BUILDERS: dict[str, Builder] = {name: partial(build, name) for name in RECIPES}
