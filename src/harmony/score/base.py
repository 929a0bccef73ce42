"""What a score is: a function of Gram blocks and of what the step knows beside them, with or without a state."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harmony import cosines
from harmony.transform import State, Update, is_samplewise


class Score(NamedTuple):
    """A score with a state.

    Attributes:
        init: ``init() -> state``.
        update: ``update(gram, state, **extras) -> (values, state)``.
        samplewise: Whether a sample's value depends on nothing of other samples, and the next state on no sample.
    """

    init: Callable[[], State]
    update: Update
    samplewise: bool = False


AnyScore = Score | Callable[..., Tensor]
"""A score with a state, or a function ``score(gram, **extras) -> (B,)``."""


def as_score(score: AnyScore) -> Score:
    """A plain function as a score without a state; a score as it is.

    Args:
        score: A score, or a function ``score(gram) -> (B,)``, which may name the extras that it needs as keywords, or
            take ``**extras``. Values that are not finite count as no score.

    Returns:
        The score.

    Raises:
        TypeError: Neither of them.

    Examples:
        >>> import torch, harmony
        >>> score = harmony.score.as_score(harmony.score.agreement)
        >>> score.update(torch.eye(2)[None], score.init())
        (tensor([0.]), ())
    """
    if isinstance(score, Score):
        return score
    if not callable(score):
        raise TypeError(
            f"a score is a function (gram, **extras) -> (B,), or a harmony.score.Score; got {score!r:.200}. A factory "
            "of scores must be called first: score.ema(score.agreement), not score.ema."
        )
    function = score
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    names = {p.name for p in parameters}

    def update(gram: Tensor, state: State, **extras: Any) -> tuple[Tensor, State]:
        values = function(gram, **(extras if takes_all else {n: x for n, x in extras.items() if n in names}))
        if not isinstance(values, Tensor) or values.shape != gram.shape[:1]:
            got = tuple(values.shape) if isinstance(values, Tensor) else repr(values)
            name = getattr(function, "__name__", function)
            raise TypeError(
                f"the score {name} gave {got} for {len(gram)} samples; expected one number each, shape ({len(gram)},). "
                "A factory of scores must be called first: score.ema(score.agreement), not score.ema."
            )
        return torch.where(values.isfinite(), values, torch.nan), state

    return Score(lambda: (), update, is_samplewise(function))


def where_defined(values: Tensor, gram: Tensor, *, pair: bool = True) -> Tensor:
    """Values (B,) of the samples that have an agreement, NaN for the others.

    With a single loss there is no agreement; what needs no ``pair`` of gradients is then defined where there is one.
    """
    alone = not pair and gram.shape[-1] == 1
    return torch.where(gram[:, 0, 0] > 0 if alone else cosines.defined(gram), values, torch.nan)
