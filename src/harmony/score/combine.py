"""Scores made of scores: sums, ranks, and moving averages over a sample's own history."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harmony.checkpoint import loadable
from harmony.extras import require_extra
from harmony.history import History, empty_history, recall, remember
from harmony.score.base import AnyScore, Score, as_score
from harmony.transform import State


def negative(score: AnyScore) -> Score:
    """Turn a score around.

    Args:
        score: A score.

    Returns:
        A score: minus the values of the other.

    Examples:
        >>> import torch, harmony
        >>> score = harmony.score.negative(harmony.score.gradient_norm)
        >>> score.update(torch.eye(2)[None] * 2, score.init())[0]
        tensor([-2.])
    """
    return _mapped([score], lambda values: -values[0])


def combined(*scores: AnyScore, weights: Sequence[float] | None = None) -> Score:
    """A weighted sum of scores. Bring them to one scale first: see [standardized][harmony.score.standardized].

    Args:
        *scores: At least one.
        weights: One for each; default ones.

    Returns:
        A score, undefined where one of them is.

    Raises:
        ValueError: No score, or another number of weights.

    Examples:
        >>> import torch, harmony
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


def least(*scores: AnyScore) -> Score:
    """The least of several scores: a sample is as clean as its worst.

    Args:
        *scores: At least one.

    Returns:
        A score, undefined where one of them is.

    Raises:
        ValueError: No score.

    Examples:
        >>> import torch, harmony
        >>> score = harmony.score.least(harmony.score.agreement, harmony.score.norm_ratio)
        >>> score.update(torch.eye(2)[None], score.init())[0]
        tensor([0.])
    """
    if not scores:
        raise ValueError("least needs at least one score.")
    return _mapped(scores, lambda values: torch.stack(list(values)).amin(0))


def standardized(score: AnyScore) -> Score:
    """A score less its mean over the batch, over its standard deviation. Not samplewise.

    Args:
        score: A score.

    Returns:
        A score; 0 for all where the others do not differ.

    Examples:
        >>> import torch, harmony
        >>> score = harmony.score.standardized(harmony.score.gradient_norm)
        >>> score.update(torch.eye(2) * torch.tensor([2.0, 8.0])[:, None, None], score.init())[0]
        tensor([-1.,  1.])
    """

    def standardize(values: Sequence[Tensor]) -> Tensor:
        x = values[0]
        seen = ~x.isnan()
        number = seen.sum().clamp(min=1)
        deviation = x - torch.where(seen, x, 0).sum() / number
        std = (torch.where(seen, deviation, 0).square().sum() / number).sqrt()
        return deviation / torch.where(std > 0, std, 1)

    return _mapped([score], standardize)._replace(samplewise=False)


def ranked(score: AnyScore) -> Score:
    """The rank of a score in the batch, from 0 for the least to 1 for the largest. Not samplewise.

    Args:
        score: A score.

    Returns:
        A score in [0, 1]; equal values share the mean of their ranks, a lone one gets 1/2.

    Examples:
        >>> import torch, harmony
        >>> score = harmony.score.ranked(harmony.score.gradient_norm)
        >>> score.update(torch.eye(2) * torch.tensor([2.0, 8.0, 2.0])[:, None, None], score.init())[0]
        tensor([0.2500, 1.0000, 0.2500])
    """

    def rank(values: Sequence[Tensor]) -> Tensor:
        x = values[0]
        seen = ~x.isnan()
        ordered = torch.where(seen, x, torch.inf).sort().values
        below, not_above = torch.searchsorted(ordered, x), torch.searchsorted(ordered, x, right=True)
        number = seen.sum()
        place = (below + not_above.clamp(max=number) - 1).to(x.dtype) / 2
        place = torch.where(number > 1, place / (number - 1).clamp(min=1), 0.5)
        return torch.where(seen, place, torch.nan)

    return _mapped([score], rank)._replace(samplewise=False)


@loadable
class EmaState(NamedTuple):
    """State of a moving average: that of the score under it, and what is remembered of each sample."""

    score: State
    memory: History


def ema(score: AnyScore, decay: float = 0.9, capacity: int = 2**20) -> Score:
    """The moving average of a score over a sample's own history, by its id: one noisy step decides nothing.

    History is bounded: ``capacity`` places, of which each sample has one by the hash of its id. Where two samples share
    one, the latest is remembered, and the other starts anew. Choose a few times the number of samples.

    Args:
        score: A score.
        decay: Weight of the past, in [0, 1).
        capacity: Samples that are remembered.

    Returns:
        A score. It needs ``ids`` (B,), integers, which a step takes. Not samplewise.

    Raises:
        ValueError: A decay out of [0, 1); in ``update``, no ids.

    Examples:
        >>> import torch, harmony
        >>> score = harmony.score.ema(harmony.score.gradient_norm, decay=0.5, capacity=64)
        >>> state, ids = score.init(), torch.tensor([7])
        >>> for scale in (1.0, 4.0):
        ...     values, state = score.update(torch.eye(2)[None] * scale / 2, state, ids=ids)
        >>> values
        tensor([1.5000])
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be at least 0 and below 1; got {decay}.")
    inner = as_score(score)

    def init() -> EmaState:
        return EmaState(inner.init(), empty_history(capacity))

    @torch.no_grad()
    def update(gram: Tensor, state: EmaState, *, ids: Tensor | None = None, **extras: Any) -> tuple[Tensor, EmaState]:
        ids = require_extra("ema", "ids", ids, gram.shape[:1], "ids=")
        values, after = inner.update(gram, state.score, ids=ids, **extras)
        past, known = recall(state.memory, ids)
        values = torch.where(known, torch.lerp(values, past.to(values.dtype), decay), values)
        return values, EmaState(after, remember(state.memory, ids, values, ~values.isnan()))

    return Score(init, update)


def _mapped(scores: Sequence[AnyScore], function: Callable[[Sequence[Tensor]], Tensor]) -> Score:
    """A function of the values of some scores."""
    members = [as_score(s) for s in scores]

    def init() -> State:
        return tuple(m.init() for m in members)

    def update(gram: Tensor, state: State, **extras: Any) -> tuple[Tensor, State]:
        found = [m.update(gram, s, **extras) for m, s in zip(members, state, strict=True)]
        return function([values for values, _ in found]), tuple(after for _, after in found)

    return Score(init, update, all(m.samplewise for m in members))
