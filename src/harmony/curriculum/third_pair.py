"""A curriculum for three modalities: the pair that no loss trains cross-checks the two pairs that are trained."""

from typing import Any

import torch
from torch import Tensor

from harmony.arguments import check_range, require_extra
from harmony.cosines import defined
from harmony.curriculum.rule import RunningMean
from harmony.members import factory
from harmony.numerics.batch import places, standardize
from harmony.schedule import Schedule, as_schedule
from harmony.transform import Transform, counting


@factory("transform")
def cross_check(
    warmup: int = 0, share: float | Schedule | None = None, floor: float = 0.2, decay: float = 0.98
) -> Transform:
    """Drop the pairs of modalities that seem to be misaligned, for each loss its own, as many as there seem to be.

    Of three modalities, two pairs have a loss: video and audio, video and text, say. Audio and text, the third side,
    have none: a wrong text that the losses have learnt by heart still does not fit its sound. (Not the loss TRIANGLE of
    Cicchetti et al., 2025, arXiv:2509.24734, which is ``score.triangle_area``.)

    Which pairs: in a batch, the score of a pair is its standardised similarity on the third side less its standardised
    loss. How many: on the third side, wrong pairs are above half of the others as often as below, aligned ones are
    above. Hence a share ``1 - 2 P(below half)`` of the clips is aligned on all sides, estimated over the past batches.
    The two losses drop the rest, in proportion to what their own sides lack by the same estimate.

    Args:
        warmup: Steps over which the dropped share rises from zero, linearly.
        share: Share of the pairs to keep of each loss, in [0, 1], a number or a schedule; replaces the estimates.
        floor: The least share of the clips that counts as aligned, in (0, 1]: an untrained model aligns none.
        decay: Weight of the past in the estimates, in [0, 1).

    Returns:
        A transform with weights 0 or 1, (B, 2), for two losses; not samplewise. It needs ``terms`` (B, 2) and ``sides``
        (B, 3, B): ``sides[b, s, c]`` is the similarity of the first modality of sample b and the second of sample c,
        for the pairs of loss 0, of loss 1, and the third. Samples without an agreement keep weight 1, uncounted.

    Examples:
        >>> rule = harmony.curriculum.cross_check(share=0.5)
        >>> aligned = torch.eye(4)  # every clip fits itself alone ...
        >>> third = aligned[[1, 0, 2, 3]]  # ... but for two, the text of which fits the sound of the other
        >>> terms = torch.tensor([[1.0, 3.0], [1.0, 3.0], [1.0, 1.0], [1.0, 1.0]])
        >>> sides = torch.stack([aligned, aligned, third], 1)
        >>> rule.update(torch.eye(2).expand(4, 2, 2), rule.init(), terms=terms, sides=sides)[0][:, 1]
        tensor([0., 0., 1., 1.])
    """
    check_range("warmup", warmup, at_least=0)
    check_range("share", share, at_least=0, at_most=1)
    check_range("floor", floor, above=0, at_most=1)
    check_range("decay", decay, at_least=0, below=1)
    schedule = None if share is None else as_schedule(share)

    def update(gram: Tensor, step: Tensor, below: RunningMean, **extras: Any) -> tuple[Tensor, RunningMean]:
        b = len(gram)
        if gram.shape[1] != 2:
            raise ValueError(f"cross_check is for two losses; got Gram blocks of {gram.shape[1]}.")
        terms = require_extra("cross_check", "terms", extras.get("terms"), (b, 2), "harmonized_grad or backward")
        source = 'extras=lambda embeddings: {"sides": ...}'
        sides = require_extra("cross_check", "sides", extras.get("sides"), (b, 3, b), source)
        valid = defined(gram)
        ranks = side_ranks(sides, valid)
        share_below = torch.where(valid[:, None], (ranks < 0.5).to(ranks), 0).sum(0) / valid.sum().clamp(min=1)
        below = below.include(share_below, decay, valid.sum() > 1)  # a single sample is compared with no other
        shares = _kept_shares(below.mean, floor) if schedule is None else schedule(step).to(sides).expand(2)
        ramp = (step / warmup).clamp(max=1).to(sides) if warmup else 1.0
        numbers = ((1 - ramp * (1 - shares)) * valid.sum() + 0.5).floor()
        third = standardize(sides[:, 2].diagonal(), valid)
        scores = [torch.where(valid, third - standardize(loss, valid), torch.nan) for loss in terms.unbind(1)]
        kept = torch.stack([places(score) < number for score, number in zip(scores, numbers, strict=True)], 1)
        return torch.where(valid[:, None], kept.to(gram.dtype), 1), below

    return counting(update, lambda: RunningMean(torch.zeros(3), torch.zeros(())))


def side_ranks(sides: Tensor, valid: Tensor) -> Tensor:
    """Ranks (B, S) in [0, 1] of each sample's own pairs: the share of the mixed pairs that fit less well.

    ``sides`` (B, S, B) are similarities, see [cross_check][harmony.curriculum.cross_check]. A mixed pair has one
    modality of this sample and the other of another valid sample; equal ones count one half. 1/2 without mixed pairs.
    """
    aligned = sides.diagonal(dim1=0, dim2=2).T
    mixed = valid[:, None] & valid & ~torch.eye(len(sides), dtype=torch.bool, device=sides.device)
    with_first, with_second = (
        torch.where(mixed[:, None], torch.sign(x - sides), 0) for x in (aligned[:, :, None], aligned.T[None])
    )
    won = with_first.sum(2) + with_second.sum(0).T  # less lost
    return 0.5 + won / (4 * mixed.sum(1).clamp(min=1)[:, None])


def _kept_shares(below: Tensor, floor: float) -> Tensor:
    """The share of pairs to keep of each loss (2,), from the shares (3,) of ranks below one half."""
    aligned = (1 - 2 * below).clamp(0, 1)
    lacking = 1 - aligned[:2] + 0.02  # equal blame where neither lacks anything
    return 1 - (1 - aligned[2].clamp(min=floor)) * lacking / lacking.sum()
