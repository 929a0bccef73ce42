"""Projection of one gradient against another, pair after pair: PCGrad and GradVac."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from harmony.checkpoint import loadable
from harmony.numerics.counter import uniform
from harmony.numerics.unit import UnitBlocks, times, unit_blocks
from harmony.schedule import Schedule, as_schedule
from harmony.transform import StepState, Transform, first_step, samplewise

MOST_LISTED = 6
"""Losses whose orders can all be listed: 120 orders of the five others."""


@samplewise
def pcgrad(gram: Tensor, order: Literal["mean"] | Sequence[int] | None = None) -> Tensor:
    """Project each gradient on the normal plane of every other gradient it conflicts with.

    Gradient k starts as ``g_k`` and, for each other loss l in order, loses its component along the original ``g_l``
    where their inner product is negative. For two losses this is the realignment of gradient harmonization: where
    ``G_12 < 0`` the weights are ``(1 - G_12 / G_11, 1 - G_12 / G_22)``, else ones.

    For more than two losses the result depends on the order; the original draws one at random, which is
    [pcgrad_random][harmony.realign.pcgrad_random].

    Args:
        gram: Gram blocks (B, K, K).
        order: The losses in the order in which they are projected against; default 0, 1, ... ``"mean"`` averages over
            all orders, the expectation of the original, for at most six losses.

    Returns:
        Weights (B, K) such that ``sum_k W_bk g_b^k`` is the sum of the projected gradients.

    Raises:
        ValueError: An order that is no permutation of the losses; a mean over more orders than can be listed.

    Examples:
        >>> import torch, harmony
        >>> harmony.realign.pcgrad(torch.tensor([[[1.0, -0.5], [-0.5, 1.0]], [[1.0, 0.5], [0.5, 1.0]]]))
        tensor([[1.5000, 1.5000],
                [1.0000, 1.0000]])

    References:
        Yu et al., Gradient Surgery for Multi-Task Learning, 2020 (arXiv:2001.06782), algorithm 1;
        Wu et al., 2022 (arXiv:2211.02077).
    """
    blocks = unit_blocks(gram)
    k = gram.shape[-1]
    if order == "mean":
        if k > MOST_LISTED:
            raise ValueError(
                f'order="mean" averages over all orders, for at most {MOST_LISTED} losses; got {k}. Use pcgrad_random.'
            )
        found = [_summed(blocks, _given(blocks, o)) for o in _orders_of_others(k)]
        return blocks.weights(torch.stack(found).mean(0))
    if order is not None and sorted(order) != list(range(k)):
        raise ValueError(f"order must name each of the {k} losses once, as 0 to {k - 1}; got {list(order)}.")
    if k == 2:  # one order, one projection
        lost = (-blocks.cosine[:, 0, 1, None]).clamp(min=0) * _lengths(blocks).flip(-1)
        return blocks.weights(1 + lost / blocks.norm)
    rows = [[l for l in order or range(k) if l != i] for i in range(k)]
    return blocks.weights(_summed(blocks, _given(blocks, rows)))


def pcgrad_random(seed: int = 0) -> Transform:
    """[pcgrad][harmony.realign.pcgrad] in an order drawn anew for every gradient, sample and step, as in the original.

    Args:
        seed: The orders are a pure function of seed, step and place in the batch.

    Returns:
        A transform with weights (B, K). Not samplewise, as a place in the batch is not.

    Examples:
        >>> import torch, harmony
        >>> method = harmony.realign.pcgrad_random()
        >>> weights, state = method.update(torch.eye(3)[None], method.init())
        >>> weights, int(state.step)
        (tensor([[1., 1., 1.]]), 1)

    References:
        Yu et al., Gradient Surgery for Multi-Task Learning, 2020 (arXiv:2001.06782), algorithm 1.
    """

    def update(gram: Tensor, state: StepState, **extras: Any) -> tuple[Tensor, StepState]:
        blocks = unit_blocks(gram)
        b, k = gram.shape[:2]
        drawn = uniform(seed, state.step, b, k * k, gram.device).view(b, k, k)
        own = torch.eye(k, dtype=torch.bool, device=gram.device)
        order = drawn.masked_fill(own, 2).argsort(-1)[..., : k - 1]  # its own number comes last, and is left out
        return blocks.weights(_summed(blocks, _drawn(blocks, order))), state.next()

    return Transform(first_step, update)


@loadable
class GradVacState(NamedTuple):
    """State of GradVac: the number of updates so far, and the target cosines, 0-d until the first update."""

    step: Tensor
    target: Tensor


def gradvac(target: float | Schedule | None = None, decay: float = 0.99) -> Transform:
    """Gradient vaccine: raise the cosine of each pair to a target where it is lower.

    Like [pcgrad][harmony.realign.pcgrad], which it is at the target 0, but a target above 0 also moves gradients that
    agree a little. Gradient k receives, for each other loss l in order, as much of ``g_l`` as brings their cosine to
    the target. The losses are taken in their order, where the original draws one.

    Args:
        target: A cosine in (-1, 1), or a schedule of it. Default: a moving average of the cosines seen, one for each
            pair of losses, from 0.
        decay: Weight of the past in that average; the paper calls the rest of it beta, 0.01.

    Returns:
        A transform with weights (B, K); samplewise where the target is given. The average is over the samples of a
        batch that have both gradients.

    Raises:
        ValueError: A decay out of [0, 1), or a target out of (-1, 1); a schedule is kept inside.

    Examples:
        >>> import torch, harmony
        >>> method = harmony.realign.gradvac(target=0.5)
        >>> weights, state = method.update(torch.eye(2)[None], method.init())
        >>> weights  # each gains tan(30 degrees) of the other: the cosine of g_1' and g_2 is 0.5
        tensor([[1.5774, 1.5774]])

    References:
        Wang et al., Gradient Vaccine, 2021 (arXiv:2010.05874), algorithm 1 and equation 3.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be at least 0 and below 1; got {decay}.")
    if isinstance(target, int | float) and not -1 < target < 1:
        raise ValueError(f"target must be a cosine between -1 and 1, both excluded; got {target}.")
    schedule = None if target is None else as_schedule(target)

    def init() -> GradVacState:
        return GradVacState(torch.zeros((), dtype=torch.int64, device="cpu"), torch.zeros(()))

    def update(gram: Tensor, state: GradVacState, **extras: Any) -> tuple[Tensor, GradVacState]:
        blocks = unit_blocks(gram)
        given = state.target if schedule is None else schedule(state.step)
        given = given.to(gram.device) if given.ndim else given  # a number on the host needs no copy
        wanted = (blocks.cosine.new_zeros(gram.shape[1:]) + given).clamp(-0.999999, 0.999999)
        coefficients, seen = _vaccinated(blocks, wanted)
        after = wanted
        if schedule is None:
            pairs = blocks.active[:, :, None] & blocks.active[:, None, :]
            number = pairs.sum(0)
            average = torch.where(pairs, seen, 0).sum(0) / number.clamp(min=1)
            after = torch.where(number > 0, decay * wanted + (1 - decay) * average, wanted)
        state = GradVacState(state.step + 1, after.float() if schedule is None else state.target)
        return blocks.weights(coefficients.sum(1) / blocks.norm), state

    return Transform(init, update, samplewise=schedule is not None)


Others = Iterable[tuple[Tensor, Tensor]]
"""For each gradient the other losses in turn: their cosines with all losses, and a one in their place; (B, K, K)."""


def _summed(blocks: UnitBlocks, others: Others) -> Tensor:
    """Weights (B, K) of the sum of the projected gradients."""
    coefficients = _own(blocks)
    for cosines, place in others:
        product = (coefficients * cosines).sum(-1, keepdim=True).clamp(max=0)
        coefficients = coefficients - product * place
    return coefficients.sum(1) / blocks.norm


def _vaccinated(blocks: UnitBlocks, target: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients (B, K, K) of the moved gradients, and the cosines (B, K, K) that were compared with the target."""
    k = blocks.norm.shape[-1]
    coefficients = _own(blocks)
    eye = torch.eye(k, dtype=coefficients.dtype, device=coefficients.device)
    columns = []
    for other in range(k):
        products = times(blocks.cosine[:, None], coefficients)  # <g_i', unit g_l>
        length = (coefficients * products).sum(-1).clamp(min=0).sqrt()
        cosine = (products[..., other] / torch.where(length > 0, length, 1)).clamp(-1, 1)
        wanted = target[:, other]
        sine, wanted_sine = (1 - cosine**2).sqrt(), (1 - wanted**2).sqrt()
        step = length * (wanted * sine - cosine * wanted_sine) / wanted_sine
        pair = blocks.active & blocks.active[:, other, None] & (eye[other] == 0)
        step = torch.where(pair & (cosine < wanted), step, 0)
        coefficients = coefficients + step[..., None] * eye[other]
        columns.append(cosine)
    return coefficients, torch.stack(columns, -1)


def _own(blocks: UnitBlocks) -> Tensor:
    """Row i of (B, K, K): the i-th gradient, as a combination of the K unit gradients. None of a zero gradient."""
    return torch.diag_embed(_lengths(blocks))


def _lengths(blocks: UnitBlocks) -> Tensor:
    return torch.where(blocks.active, blocks.norm, 0)


def _given(blocks: UnitBlocks, rows: Sequence[Sequence[int]]) -> Others:
    """The same orders for all samples: for each gradient, the numbers of the others."""
    eye = torch.eye(len(rows), dtype=blocks.cosine.dtype, device=blocks.cosine.device)
    for column in zip(*rows, strict=True):
        yield torch.stack([blocks.cosine[:, l] for l in column], 1), torch.stack([eye[l] for l in column])


def _drawn(blocks: UnitBlocks, order: Tensor) -> Others:
    """Orders (B, K, K - 1) of the others, for each gradient of each sample."""
    k = order.shape[1]
    for other in order.unbind(-1):
        yield blocks.cosine.gather(1, other[..., None].expand(-1, -1, k)), torch.nn.functional.one_hot(other, k)


def _orders_of_others(k: int) -> list[list[tuple[int, ...]]]:
    """All orders of the other losses, the same permutation for each of the K gradients."""
    others = [[l for l in range(k) if l != i] for i in range(k)]
    return [
        [tuple(row[p] for p in permutation) for row in others] for permutation in itertools.permutations(range(k - 1))
    ]
