"""What all curricula have in common: a score, a step count, and the factor 1 for samples without a score."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harmony.checkpoint import loadable
from harmony.score import AnyScore, as_score
from harmony.transform import State, Transform


@loadable
class RuleState(NamedTuple):
    """State of a curriculum: the number of updates so far, the state of its score, and a memory of its own."""

    step: Tensor
    score: State
    own: State = ()


Decide = Callable[[Tensor, Tensor], Tensor]
"""Scores (B,) and the step -> factors (B,), or a mask of what is kept."""


def rule(score: AnyScore, decide: Decide, *, samplewise: bool) -> Transform:
    """A curriculum that has no memory of its own."""
    inner = as_score(score)

    def init() -> RuleState:
        return RuleState(torch.zeros((), dtype=torch.int64, device="cpu"), inner.init())

    @torch.no_grad()
    def update(gram: Tensor, state: RuleState, **extras: Any) -> tuple[Tensor, RuleState]:
        values, after = inner.update(gram, state.score, **extras)
        factor = decide(values, state.step)
        return as_weights(factor, values, gram), RuleState(state.step + 1, after)

    return Transform(init, update, samplewise=samplewise and inner.samplewise)


def as_weights(factor: Tensor, values: Tensor, gram: Tensor) -> Tensor:
    """Weights (B, K) of factors (B,): 1 where there is no score."""
    return torch.where(values.isnan(), 1, factor.to(gram.dtype))[:, None].expand(gram.shape[:2])
