"""Scores made of scores: sums, ranks, and moving averages over a sample's own history."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harmony.arguments import check_range, require_extra
from harmony.checkpoint import loadable
from harmony.history import History, empty_history, recall, remember
from harmony.members import factory
from harmony.numerics.batch import standardize
from harmony.score.base import AnyScore, Score, as_score
from harmony.transform import State


@factory("score")
def negative(score: AnyScore) -> Score:
    """Turn a score around.

    Args:
        score: A score.

    Returns:
        A score: minus the values of the other.

    Examples:
        >>> score = harmony.score.negative(harmony.score.gradient_norm)
        >>> score.update(torch.eye(2)[None] * 2, score.init())[0]
        tensor([-2.])
    """
    return _mapped([score], lambda values: -values[0])


@factory("score")
def combined(*scores: AnyScore, weights: Sequence[float] | None = None) -> Score:
    """A weighted sum of scores. Bring them to one scale first: see [standardized][harmony.score.standardized].

    Args:
        *scores: At least one.
        weights: One for each; default ones.

    Returns:
        A score, undefined where one of them is.

    Examples:
        >>> s = harmony.score
        >>> score = s.combined(s.standardized(s.agreement), s.standardized(s.small_loss), weights=[0.3, 0.7])
        >>> gram, terms = torch.eye(2).expand(4, 2, 2), torch.tensor([[1.0, 1.0], [2.0, 1.0], [1.0, 2.0], [3.0, 3.0]])
        >>> score.update(gram, score.init(), terms=terms)[0].argmax()
        tensor(0)
    """
    w = [1.0] * len(scores) if weights is None else list(weights)
    if not scores or len(w) != len(scores):
        raise ValueError(f"combined needs at least one score, and a weight for each; got {len(scores)} and {len(w)}.")
    return _mapped(scores, lambda values: torch.stack([x * v for x, v in zip(w, values, strict=True)]).sum(0))


@factory("score")
def least(*scores: AnyScore) -> Score:
    """The least of several scores: a sample is as clean as its worst.

    Args:
        *scores: At least one.

    Returns:
        A score, undefined where one of them is.

    Examples:
        >>> score = harmony.score.least(harmony.score.agreement, harmony.score.norm_ratio)
        >>> score.update(torch.eye(2)[None], score.init())[0]
        tensor([0.])
    """
    if not scores:
        raise ValueError("least needs at least one score.")
    return _mapped(scores, lambda values: torch.stack(list(values)).amin(0))


@factory("score")
def standardized(score: AnyScore) -> Score:
    """A score less its mean over the batch, over its standard deviation. Not samplewise.

    Args:
        score: A score.

    Returns:
        A score; 0 for all where the values do not differ.

    Examples:
        >>> score = harmony.score.standardized(harmony.score.gradient_norm)
        >>> score.update(torch.eye(2) * torch.tensor([2.0, 8.0])[:, None, None], score.init())[0]
        tensor([-1.,  1.])
    """
    return _mapped([score], lambda values: standardize(values[0], ~values[0].isnan()), samplewise=False)


@factory("score")
def ranked(score: AnyScore) -> Score:
    """The rank of a score in the batch, from 0 for the least to 1 for the largest. Not samplewise.

    Args:
        score: A score.

    Returns:
        A score in [0, 1]; equal values share the mean of their ranks, a single one gets 1/2.

    Examples:
        >>> score = harmony.score.ranked(harmony.score.gradient_norm)
        >>> score.update(torch.eye(2) * torch.tensor([2.0, 8.0, 2.0])[:, None, None], score.init())[0]
        tensor([0.2500, 1.0000, 0.2500])
    """

    def rank(values: Sequence[Tensor]) -> Tensor:
        x = values[0]
        number = (~x.isnan()).sum()
        ordered = torch.where(x.isnan(), torch.inf, x).sort().values
        below, up_to = torch.searchsorted(ordered, x), torch.searchsorted(ordered, x, right=True)
        ranks = (below + up_to.clamp(max=number) - 1).to(x.dtype) / 2
        ranks = torch.where(number > 1, ranks / (number - 1).clamp(min=1), 0.5)
        return torch.where(x.isnan(), torch.nan, ranks)

    return _mapped([score], rank, samplewise=False)


@loadable
class EmaState(NamedTuple):
    """State of a moving average: the state of its score, and the average of each sample."""

    score: State
    history: History


@factory("score")
def ema(score: AnyScore, decay: float = 0.9, capacity: int = 2**20) -> Score:
    """The moving average of a score over a sample's own history, by its id: one noisy step decides nothing.

    Args:
        score: A score.
        decay: Weight of the past, in [0, 1).
        capacity: Places for samples, a few times their number. Each has one by the hash of its id; where two share one,
            the later is remembered, and the other starts anew.

    Returns:
        A score. It needs ``ids`` (B,), integers, from a step with ``ids=``. Not samplewise.

    Examples:
        >>> score = harmony.score.ema(harmony.score.gradient_norm, decay=0.5, capacity=64)
        >>> state, ids = score.init(), torch.tensor([7])
        >>> for scale in (1.0, 4.0):
        ...     values, state = score.update(torch.eye(2)[None] * scale / 2, state, ids=ids)
        >>> values
        tensor([1.5000])
    """
    check_range("decay", decay, at_least=0, below=1)
    inner = as_score(score)

    def init() -> EmaState:
        return EmaState(inner.init(), empty_history(capacity))

    @torch.no_grad()
    def update(gram: Tensor, state: EmaState, *, ids: Tensor | None = None, **extras: Any) -> tuple[Tensor, EmaState]:
        ids = require_extra("ema", "ids", ids, gram.shape[:1], "ids=")
        values, after = inner.update(gram, state.score, ids=ids, **extras)
        past, known = recall(state.history, ids)
        values = torch.where(known, torch.lerp(values, past.to(values.dtype), decay), values)
        return values, EmaState(after, remember(state.history, ids, values, ~values.isnan()))

    return Score(init, update)


def _mapped(
    scores: Sequence[AnyScore], function: Callable[[Sequence[Tensor]], Tensor], samplewise: bool = True
) -> Score:
    """A function of the values of some scores."""
    members = [as_score(score) for score in scores]

    def init() -> State:
        return tuple(member.init() for member in members)

    def update(gram: Tensor, state: State, **extras: Any) -> tuple[Tensor, State]:
        pairs = [member.update(gram, before, **extras) for member, before in zip(members, state, strict=True)]
        return function([values for values, _ in pairs]), tuple(after for _, after in pairs)

    return Score(init, update, samplewise and all(member.samplewise for member in members))
