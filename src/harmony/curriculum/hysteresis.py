"""Curricula that remember what they did with a sample."""

from typing import Any

import torch
from torch import Tensor

from harmony.curriculum.rule import RuleState, as_weights
from harmony.extras import require_extra
from harmony.history import History, empty_history, recall, remember
from harmony.schedule import Schedule, as_schedule
from harmony.score import AnyScore, agreement, as_score
from harmony.transform import Transform


def hysteresis(
    low: float | Schedule, high: float | Schedule, score: AnyScore = agreement, capacity: int = 2**20
) -> Transform:
    """Drop a sample whose score falls to ``low``, and take it back only when it rises above ``high``.

    A sample near one threshold would come and go at every step; here it stays as it is between the two.

    Args:
        low: What a sample that is kept, or new, must exceed; a number or a schedule.
        high: What a sample that was dropped must exceed; at least ``low``.
        score: What is compared.
        capacity: Samples that are remembered; see [ema][harmony.score.ema]. A forgotten one counts as new.

    Returns:
        A transform with weights 0 or 1. It needs ``ids`` (B,), integers, which a step takes. Not samplewise.

    Raises:
        ValueError: ``high`` below ``low``; in ``update``, no ids.

    Examples:
        >>> import torch, harmony
        >>> curriculum = harmony.curriculum.hysteresis(-0.2, 0.2, capacity=16)
        >>> state, ids, kept = curriculum.init(), torch.tensor([3]), []
        >>> for cosine in (0.1, -0.3, 0.1, 0.3, 0.1):
        ...     gram = torch.tensor([[[1.0, cosine], [cosine, 1.0]]])
        ...     weights, state = curriculum.update(gram, state, ids=ids)
        ...     kept.append(int(weights[0, 0]))
        >>> kept
        [1, 0, 0, 1, 1]
    """
    if isinstance(low, int | float) and isinstance(high, int | float) and high < low:
        raise ValueError(f"high must be at least low; got {high} and {low}.")
    lower, upper = as_schedule(low), as_schedule(high)
    inner = as_score(score)

    def init() -> RuleState:
        return RuleState(torch.zeros((), dtype=torch.int64, device="cpu"), inner.init(), empty_history(capacity))

    @torch.no_grad()
    def update(gram: Tensor, state: RuleState, *, ids: Tensor | None = None, **extras: Any) -> tuple[Tensor, RuleState]:
        ids = require_extra("hysteresis", "ids", ids, gram.shape[:1], "ids=")
        values, after = inner.update(gram, state.score, ids=ids, **extras)
        own: History = state.own
        was_kept, known = recall(own, ids)
        dropped = known & (was_kept == 0)
        step = state.step
        kept = values > torch.where(dropped, upper(step), lower(step))
        own = remember(own, ids, kept.float(), ~values.isnan())
        return as_weights(kept, values, gram), RuleState(state.step + 1, after, own)

    return Transform(init, update)
