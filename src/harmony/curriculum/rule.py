"""What curricula have in common: a score, a step count, a factor of 1 without a score, and running means."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harmony.checkpoint import loadable
from harmony.score import AnyScore, as_score
from harmony.transform import State, Transform, counting


def rule(score: AnyScore, decide: Callable[[Tensor, Tensor], Tensor], *, samplewise: bool = False) -> Transform:
    """A curriculum of ``decide(values, step) -> factors``, for values (B,); factors may be a mask of what is kept."""
    return remembering_rule(
        score, lambda values, step, memory, **extras: (decide(values, step), memory), tuple, samplewise=samplewise
    )


def remembering_rule(
    score: AnyScore,
    decide: Callable[..., tuple[Tensor, State]],
    memory: Callable[[], State],
    *,
    samplewise: bool = False,
) -> Transform:
    """A curriculum of ``decide(values, step, memory, **extras) -> (factors, memory)``."""
    inner = as_score(score)

    def update(gram: Tensor, step: Tensor, state: State, **extras: Any) -> tuple[Tensor, State]:
        score_state, memory = state
        values, score_state = inner.update(gram, score_state, **extras)
        factors, memory = decide(values, step, memory, **extras)
        weights = torch.where(values.isnan(), 1, factors.to(gram.dtype))
        return weights[:, None].expand(gram.shape[:2]), (score_state, memory)

    return counting(update, lambda: (inner.init(), memory()), samplewise=samplewise and inner.samplewise)


@loadable
class RunningMean(NamedTuple):
    """A mean of values that arrive one by one, in which the past decays.

    Attributes:
        total: Decayed sum of the values.
        weight: Decayed sum of their weights.
    """

    total: Tensor
    weight: Tensor

    @property
    def mean(self) -> Tensor:
        """The mean; 0 without values."""
        return self.total / torch.where(self.weight > 0, self.weight, 1)

    def include(self, value: Tensor, decay: float, counts: Tensor) -> "RunningMean":
        """The running mean after one more value, where that counts."""
        total, weight = self.total.to(value), self.weight.to(value)
        return RunningMean(
            torch.where(counts, decay * total + (1 - decay) * value, total),
            torch.where(counts, decay * weight + (1 - decay), weight),
        )
