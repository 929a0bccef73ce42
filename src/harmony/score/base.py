"""What a score is: a function of Gram blocks and extras, or a pair of functions with a state."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harmony.cosines import defined
from harmony.members import is_samplewise, refuse_factory
from harmony.transform import State, Update


class Score(NamedTuple):
    """A score with a state.

    Attributes:
        init: ``init() -> state``.
        update: ``update(gram, state, **extras) -> (values, state)``.
        samplewise: Whether the value of a sample depends on no other sample, and the next state on no sample.
    """

    init: Callable[[], State]
    update: Update
    samplewise: bool = False


AnyScore = Score | Callable[..., Tensor]
"""A score with a state, or a function ``score(gram, **extras) -> (B,)``."""


def as_score(score: AnyScore) -> Score:
    """A function as a score without a state; a score as it is.

    Args:
        score: A score, or a function ``score(gram) -> (B,)``, which names the extras that it needs as keywords, or
            takes ``**extras``. Values that are not finite count as no score.

    Returns:
        The score.

    Examples:
        >>> score = harmony.score.as_score(harmony.agreement)
        >>> score.update(torch.eye(2)[None], score.init())
        (tensor([0.]), ())
    """
    if isinstance(score, Score):
        return score
    refuse_factory(score)
    if not callable(score):
        raise TypeError(f"a score is a function (gram, **extras) -> (B,), or a score.Score; got {score!r:.200}.")
    function = score
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    names = {p.name for p in parameters}

    def update(gram: Tensor, state: State, **extras: Any) -> tuple[Tensor, State]:
        values = function(gram, **{name: x for name, x in extras.items() if takes_all or name in names})
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

    A single loss has no agreement. What needs no ``pair`` of gradients is then defined where its gradient is not zero.
    """
    return torch.where(defined(gram) if pair else has_gradients(gram), values, torch.nan)


def has_gradients(gram: Tensor) -> Tensor:
    """Mask (B,) of the samples that have an agreement; of a single loss, of those whose gradient is not zero."""
    return gram[:, 0, 0] > 0 if gram.shape[-1] == 1 else defined(gram)
