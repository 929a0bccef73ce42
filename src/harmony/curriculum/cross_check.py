"""A curriculum for three modalities: the pair that no loss trains judges the two pairs that are trained."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from harmony.checkpoint import loadable
from harmony.cosines import defined
from harmony.curriculum.ranking import place
from harmony.extras import require_extra
from harmony.schedule import Schedule, as_schedule
from harmony.transform import Transform


@loadable
class CrossCheckState(NamedTuple):
    """Running estimates, 0-d or (3,): updates so far, decayed share of ranks below one half, decayed weight."""

    step: Tensor
    below: Tensor
    weight: Tensor


def cross_check(
    warmup: int = 0, share: float | Schedule | None = None, floor: float = 0.2, decay: float = 0.98
) -> Transform:
    """Drop the pairs of modalities that seem to be misaligned, each loss's own, as many as there seem to be.

    Of three modalities, two pairs have a loss: video and audio, video and text, say. The third side of this cross_check,
    audio and text, has none, so that a wrong text which the losses have learnt by heart still does not fit its sound.

    Which: within a batch, each pair is scored by its own loss and by the similarity of the third side, standardised and
    added up. How many: a wrong pair on the third side is as often above as below half of the others, an aligned one is
    above; hence a share ``1 - 2 P(below half)`` of the clips has all sides aligned. It is estimated over the past
    batches, and the rest is put to the two losses in proportion to what their own sides lack by the same rule.

    Args:
        warmup: Steps over which the dropped share rises from nothing, linearly.
        share: Share of the pairs to keep of each loss, in [0, 1], a number or a schedule, in place of the estimates.
        floor: The least share of the clips that the estimate may call aligned, in (0, 1]: an untrained model knows
            none, and a rule that keeps nothing learns nothing.
        decay: Weight of the past in the estimates, in [0, 1).

    Returns:
        A transform with weights 0 or 1, (B, 2). It needs ``terms`` (B, 2), which a step takes from the losses, and
        ``sides`` (B, 3, B): ``sides[b, s, c]`` is the similarity of b's end of side s with c's other end; sides 0 and 1
        belong to losses 0 and 1, side 2 is the third. Samples without an agreement keep weight 1 and count nowhere.
        Not samplewise.

    Raises:
        ValueError: Numbers out of range; in ``update``, other than two losses, or no ``sides``.

    Examples:
        >>> import torch, harmony
        >>> rule = harmony.curriculum.cross_check(share=0.5)
        >>> aligned = torch.eye(4)  # every clip fits itself alone ...
        >>> third = aligned.clone()
        >>> third[:2] = third[[1, 0]]  # ... but for two, the text of which fits the sound of the other
        >>> terms = torch.tensor([[1.0, 3.0], [1.0, 3.0], [1.0, 1.0], [1.0, 1.0]])
        >>> gram = torch.eye(2).expand(4, 2, 2)
        >>> sides = torch.stack([aligned, aligned, third], 1)
        >>> weights, _ = rule.update(gram, rule.init(), terms=terms, sides=sides)
        >>> weights[:, 1]
        tensor([0., 0., 1., 1.])
    """
    if not (warmup >= 0 and 0 < floor <= 1 and 0 <= decay < 1):
        raise ValueError(
            f"expected warmup of at least 0, floor in (0, 1], decay in [0, 1); got {warmup}, {floor}, {decay}."
        )
    if isinstance(share, int | float) and not 0 <= share <= 1:
        raise ValueError(f"a share is between 0 and 1; got {share}.")
    given = None if share is None else as_schedule(share)

    def init() -> CrossCheckState:
        return CrossCheckState(torch.zeros((), dtype=torch.int64, device="cpu"), torch.zeros(3), torch.zeros(()))

    @torch.no_grad()
    def update(
        gram: Tensor, state: CrossCheckState, *, terms: Tensor | None = None, sides: Tensor | None = None, **extras: Any
    ) -> tuple[Tensor, CrossCheckState]:
        b = len(gram)
        if gram.shape[1] != 2:
            raise ValueError(f"cross_check is for two losses; got Gram blocks of {gram.shape[1]}.")
        terms = require_extra("cross_check", "terms", terms, (b, 2), "harmonized_grad or backward")
        sides = require_extra("cross_check", "sides", sides, (b, 3, b), 'extras=lambda embeddings: {"sides": ...}')
        there = defined(gram)
        after = _counted(state, side_ranks(sides, there), there, decay)
        shares = _shares(after, floor) if given is None else given(state.step).to(sides).expand(2)
        ramp = (state.step / warmup).clamp(max=1).to(sides) if warmup else 1.0
        numbers = ((1 - ramp * (1 - shares)) * there.sum() + 0.5).floor()
        third = _standardized(sides[:, 2].diagonal(), there)
        scores = [torch.where(there, third - _standardized(loss, there), torch.nan) for loss in terms.unbind(1)]
        kept = torch.stack([place(score) < number for score, number in zip(scores, numbers, strict=True)], 1)
        return torch.where(there[:, None], kept.to(gram.dtype), 1), after

    return Transform(init, update)


def side_ranks(sides: Tensor, there: Tensor) -> Tensor:
    """Where each sample's own pairs stand among those of the batch.

    Args:
        sides: Similarities (B, S, B), see [cross_check][harmony.curriculum.cross_check].
        there: Mask (B,) of the samples that are compared.

    Returns:
        Ranks (B, S) in [0, 1]: the share of the others, at either end of a side, that fit less well; equal ones count
        one half. 1/2 where there is no other.
    """
    own = sides.diagonal(dim1=0, dim2=2).T
    others = there[:, None] & there & ~torch.eye(len(sides), dtype=torch.bool, device=sides.device)
    as_first, as_second = (
        torch.where(others[:, None], torch.sign(x - sides), 0) for x in (own[:, :, None], own.T[None])
    )
    won = as_first.sum(2) + as_second.sum(0).T  # less lost
    return 0.5 + won / (4 * others.sum(1).clamp(min=1)[:, None])


def _counted(state: CrossCheckState, ranks: Tensor, there: Tensor, decay: float) -> CrossCheckState:
    """The state after a batch; one of fewer than two samples compares nothing, and counts for nothing."""
    number = there.sum()
    below = torch.where(there[:, None], (ranks < 0.5).to(ranks), 0).sum(0) / number.clamp(min=1)
    past = 1 - (1 - decay) * (number > 1).to(ranks)
    return CrossCheckState(
        state.step + 1,
        past * state.below.to(ranks) + (1 - past) * below,
        past * state.weight.to(ranks) + (1 - past),
    )


def _shares(state: CrossCheckState, floor: float) -> Tensor:
    """The share of pairs to keep of each loss, (2,)."""
    aligned = (1 - 2 * state.below / torch.where(state.weight > 0, state.weight, 1)).clamp(0, 1)
    lacking = 1 - aligned[:2] + 0.02  # equal blame where neither lacks anything
    return 1 - (1 - aligned[2].clamp(min=floor)) * lacking / lacking.sum()


def _standardized(values: Tensor, there: Tensor) -> Tensor:
    """Values (B,) less their mean, over their standard deviation, of the samples that are there."""
    number = there.sum().clamp(min=1)
    deviation = values - torch.where(there, values, 0).sum() / number
    std = (torch.where(there, deviation, 0).square().sum() / number).sqrt()
    return deviation / torch.where(std > 0, std, 1)
