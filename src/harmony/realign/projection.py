"""Projection of one gradient against another, pair after pair: PCGrad and GradVac."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from harmony.arguments import check_range
from harmony.members import factory, samplewise
from harmony.numerics.counter import uniform
from harmony.numerics.unit import UnitBlocks, times, unit_blocks
from harmony.schedule import Schedule, as_schedule
from harmony.transform import State, Transform, counting

MOST_LISTED = 6
"""Losses whose orders can all be listed: 120 orders of the five others."""


@samplewise
def pcgrad(gram: Tensor, order: Literal["mean"] | Sequence[int] | None = None) -> Tensor:
    """Project each gradient on the normal plane of every other gradient it conflicts with.

    For each other loss l in order, gradient k loses its component along the original ``g_l`` where their inner product
    is negative. For two losses this is the realignment of gradient harmonization (Wu et al., 2022, arXiv:2211.02077).
    For more, the result depends on the order; the original (Yu et al., 2020, arXiv:2001.06782, algorithm 1) draws one
    at random: [pcgrad_random][harmony.realign.pcgrad_random].

    Args:
        gram: Gram blocks (B, K, K).
        order: The losses in the order of the projections; default 0, 1, ... ``"mean"`` averages over all orders, the
            expectation of the original, for at most six losses.

    Returns:
        Weights (B, K). For two losses ``(1 - G_12 / G_11, 1 - G_12 / G_22)`` where ``G_12 < 0``, else ones.

    Examples:
        >>> harmony.realign.pcgrad(torch.tensor([[[1.0, -0.5], [-0.5, 1.0]]]))
        tensor([[1.5000, 1.5000]])
    """
    blocks = unit_blocks(gram)
    k = gram.shape[-1]
    if order == "mean":
        if k > MOST_LISTED:
            raise ValueError(
                f'order="mean" averages over all orders, for at most {MOST_LISTED} losses; got {k}. Use pcgrad_random.'
            )
        weights = [_projected(blocks, _fixed(blocks, rows)) for rows in _all_orders(k)]
        return blocks.weights(torch.stack(weights).mean(0))
    if order is not None and sorted(order) != list(range(k)):
        raise ValueError(f"order must name each of the {k} losses once, as 0 to {k - 1}; got {list(order)}.")
    if k == 2:  # one order, one projection
        removed = (-blocks.cosine[:, 0, 1, None]).clamp(min=0) * blocks.length.flip(-1)
        return blocks.weights(1 + removed / blocks.norm)
    rows = [[l for l in order or range(k) if l != i] for i in range(k)]
    return blocks.weights(_projected(blocks, _fixed(blocks, rows)))


@factory("transform")
def pcgrad_random(seed: int = 0) -> Transform:
    """[pcgrad][harmony.realign.pcgrad] in an order drawn anew for every gradient, sample and step, as in the original.

    Args:
        seed: The orders are a pure function of seed, step and place in the batch.

    Returns:
        A transform with weights (B, K). Not samplewise, as it depends on the place in the batch. Yu et al., 2020
        (arXiv:2001.06782), algorithm 1.

    Examples:
        >>> method = harmony.realign.pcgrad_random()
        >>> weights, state = method.update(torch.eye(3)[None], method.init())
        >>> weights, int(state.step)
        (tensor([[1., 1., 1.]]), 1)
    """

    def update(gram: Tensor, step: Tensor, memory: State, **extras: Any) -> tuple[Tensor, State]:
        blocks = unit_blocks(gram)
        b, k = gram.shape[:2]
        drawn = uniform(seed, step, b, k * k, gram.device).view(b, k, k)
        diagonal = torch.eye(k, dtype=torch.bool, device=gram.device)
        order = drawn.masked_fill(diagonal, 2).argsort(-1)[..., : k - 1]  # each loss itself comes last, and is left out
        return blocks.weights(_projected(blocks, _drawn(blocks, order))), memory

    return counting(update)


@factory("transform")
def gradvac(target: float | Schedule | None = None, decay: float = 0.99) -> Transform:
    """Gradient vaccine: raise the cosine of each pair to a target where it is lower.

    With the target 0 it is [pcgrad][harmony.realign.pcgrad]; a target above 0 also moves gradients that agree a little.
    Gradient k receives, for each other loss l in order, as much of ``g_l`` as brings their cosine to the target. The
    original draws the order, here it is 0, 1, ... Wang et al., Gradient Vaccine, 2021 (arXiv:2010.05874), algorithm 1
    and equation 3.

    Args:
        target: A cosine in (-1, 1), or a schedule of it, which is kept inside. Default: a moving average of the cosines
            seen, one for each pair of losses, from 0, over the samples that have both gradients.
        decay: Weight of the past in that average; the paper's beta, 0.01, is the rest.

    Returns:
        A transform with weights (B, K); samplewise with a given target.

    Examples:
        >>> method = harmony.realign.gradvac(target=0.5)
        >>> weights, state = method.update(torch.eye(2)[None], method.init())
        >>> weights  # each gains tan(30 degrees) of the other: the cosine of g_1' and g_2 is 0.5
        tensor([[1.5774, 1.5774]])
    """
    check_range("decay", decay, at_least=0, below=1)
    check_range("the target cosine", target, above=-1, below=1)
    schedule = None if target is None else as_schedule(target)

    def update(gram: Tensor, step: Tensor, average: Tensor, **extras: Any) -> tuple[Tensor, Tensor]:
        blocks = unit_blocks(gram)
        cosine = average if schedule is None else schedule(step)
        cosine = cosine.to(gram.device) if cosine.ndim else cosine  # a number on the host needs no copy
        wanted = (blocks.cosine.new_zeros(gram.shape[1:]) + cosine).clamp(-0.999999, 0.999999)
        coefficients, seen = _vaccinated(blocks, wanted)
        if schedule is None:
            pairs = blocks.active[:, :, None] & blocks.active[:, None, :]
            number = pairs.sum(0)
            mean = torch.where(pairs, seen, 0).sum(0) / number.clamp(min=1)
            average = torch.where(number > 0, decay * wanted + (1 - decay) * mean, wanted).float()
        return blocks.weights(coefficients.sum(1) / blocks.norm), average

    return counting(update, lambda: torch.zeros(()), samplewise=schedule is not None)


Turns = Iterable[tuple[Tensor, Tensor]]
"""Turn by turn, the loss that each gradient is projected against: its cosines with all losses, (B, K, K), and a one in
its place."""


def _projected(blocks: UnitBlocks, turns: Turns) -> Tensor:
    """Weights (B, K) of the sum of the projected gradients."""
    coefficients = torch.diag_embed(blocks.length)  # row i: gradient i as a combination of the unit gradients
    for cosines, place in turns:
        product = (coefficients * cosines).sum(-1, keepdim=True).clamp(max=0)
        coefficients = coefficients - product * place
    return coefficients.sum(1) / blocks.norm


def _vaccinated(blocks: UnitBlocks, target: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients (B, K, K) of the moved gradients, and the cosines (B, K, K) that were compared with the target."""
    k = blocks.norm.shape[-1]
    coefficients = torch.diag_embed(blocks.length)
    eye = torch.eye(k, dtype=coefficients.dtype, device=coefficients.device)
    columns = []
    for l in range(k):
        products = times(blocks.cosine[:, None], coefficients)  # <g_i', unit g_j>
        length = (coefficients * products).sum(-1).clamp(min=0).sqrt()
        cosine = (products[..., l] / torch.where(length > 0, length, 1)).clamp(-1, 1)
        sine, target_sine = (1 - cosine**2).sqrt(), (1 - target[:, l] ** 2).sqrt()
        step = length * (target[:, l] * sine - cosine * target_sine) / target_sine
        pair = blocks.active & blocks.active[:, l, None] & (eye[l] == 0)
        step = torch.where(pair & (cosine < target[:, l]), step, 0)
        coefficients = coefficients + step[..., None] * eye[l]
        columns.append(cosine)
    return coefficients, torch.stack(columns, -1)


def _fixed(blocks: UnitBlocks, rows: Sequence[Sequence[int]]) -> Turns:
    """The same orders for all samples: for each gradient, the other losses."""
    eye = torch.eye(len(rows), dtype=blocks.cosine.dtype, device=blocks.cosine.device)
    for column in zip(*rows, strict=True):
        yield torch.stack([blocks.cosine[:, l] for l in column], 1), torch.stack([eye[l] for l in column])


def _drawn(blocks: UnitBlocks, order: Tensor) -> Turns:
    """Orders (B, K, K - 1) of the other losses, for each gradient of each sample."""
    k = order.shape[1]
    for l in order.unbind(-1):
        yield blocks.cosine.gather(1, l[..., None].expand(-1, -1, k)), torch.nn.functional.one_hot(l, k)


def _all_orders(k: int) -> list[list[tuple[int, ...]]]:
    """All orders of the other losses, the same permutation for each of the K gradients."""
    rows = [[l for l in range(k) if l != i] for i in range(k)]
    permutations = itertools.permutations(range(k - 1))
    return [[tuple(row[p] for p in permutation) for row in rows] for permutation in permutations]
