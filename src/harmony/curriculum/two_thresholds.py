"""A curriculum that remembers the samples it dropped."""

from typing import Any

import torch
from torch import Tensor

from harmony.curriculum.rule import remembering_rule
from harmony.extras import require_extra
from harmony.history import History, empty_history, recall, remember
from harmony.members import factory
from harmony.ranges import check_range
from harmony.schedule import Schedule, as_schedule
from harmony.score import AnyScore, agreement
from harmony.transform import Transform


@factory("transform")
def hysteresis(
    low: float | Schedule, high: float | Schedule, score: AnyScore = agreement, capacity: int = 2**20
) -> Transform:
    """Drop a sample whose score falls to ``low``, and take it back only when it rises above ``high``.

    With one threshold, a sample near it would come and go at every step; here it stays as it is between the two.

    Args:
        low: The score that kept and new samples must exceed; a number or a schedule.
        high: The score that dropped samples must exceed; at least ``low``.
        score: The score of the samples.
        capacity: Samples that are remembered; see [ema][harmony.score.ema]. A forgotten one counts as new.

    Returns:
        A transform with weights 0 or 1. It needs ``ids`` (B,), integers, from a step with ``ids=``. Not samplewise.

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
    if isinstance(low, int | float):
        check_range("high", high, at_least=low)
    lower, upper = as_schedule(low), as_schedule(high)

    def decide(
        values: Tensor, step: Tensor, history: History, *, ids: Tensor | None = None, **extras: Any
    ) -> tuple[Tensor, History]:
        ids = require_extra("hysteresis", "ids", ids, values.shape, "ids=")
        was_kept, known = recall(history, ids)
        dropped = known & (was_kept == 0)
        kept = values > torch.where(dropped, upper(step), lower(step))
        return kept, remember(history, ids, kept.float(), ~values.isnan())

    return remembering_rule(score, decide, lambda: empty_history(capacity))
