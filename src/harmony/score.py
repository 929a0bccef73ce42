"""Scores: one number per sample, larger for cleaner samples. Curricula decide by them.

A score is a function ``score(gram, **extras)`` of Gram blocks (B, K, K), and of what the step knows beside them, that
gives values (B,), NaN where a sample has no score: curricula never drop such a sample. Here these are the samples with
fewer than two nonzero gradients. A score with a memory is a pair of ``init`` and ``update``, like a transform.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harmony import cosines
from harmony.extras import needed
from harmony.memory import Memory, memory, recall, remember
from harmony.numerics.unit import unit_blocks
from harmony.transform import State, Update, is_samplewise, samplewise


class Score(NamedTuple):
    """A score with a state.

    Attributes:
        init: ``init() -> state``.
        update: ``update(gram, state, **extras) -> (values, state)``.
        samplewise: Whether a sample's value depends on nothing of other samples, and the next state on no sample.
    """

    init: Callable[[], State]
    update: Update
    samplewise: bool = False


AnyScore = Score | Callable[..., Tensor]


def as_score(score: AnyScore) -> Score:
    """A plain function as a score without a state; a score as it is.

    Args:
        score: A score, or a function ``score(gram, **extras) -> (B,)``.

    Returns:
        The score.

    Raises:
        TypeError: Neither of them.

    Examples:
        >>> import torch, harmony
        >>> score = harmony.score.as_score(harmony.score.agreement)
        >>> score.update(torch.eye(2)[None], score.init())
        (tensor([0.]), ())
    """
    if isinstance(score, Score):
        return score
    if not callable(score):
        raise TypeError(f"a score is a function (gram, **extras) -> (B,), or a harmony.score.Score; got {score!r}.")
    function = score

    def update(gram: Tensor, state: State, **extras: Any) -> tuple[Tensor, State]:
        values = function(gram, **extras)
        if not isinstance(values, Tensor) or values.shape != gram.shape[:1]:
            got = tuple(values.shape) if isinstance(values, Tensor) else repr(values)
            name = getattr(function, "__name__", function)
            raise TypeError(
                f"the score {name} gave {got} for {len(gram)} samples; expected one number each, shape ({len(gram)},). "
                "A factory of scores must be called first: score.ema(score.agreement), not score.ema."
            )
        return values, state

    return Score(lambda: (), update, is_samplewise(function))


# ------------------------------------------------------------------------------------------------ functions of the Gram
@samplewise
def agreement(gram: Tensor, **extras: Any) -> Tensor:
    """The least pairwise cosine of a sample's gradients, the score of the paper.

    Args:
        gram: Gram blocks (B, K, K).
        **extras: Not used.

    Returns:
        Cosines (B,) in [-1, 1].

    Examples:
        >>> import torch, harmony
        >>> harmony.score.agreement(torch.tensor([[[4.0, -3.0], [-3.0, 9.0]], [[4.0, 0.0], [0.0, 0.0]]]))
        tensor([-0.5000,     nan])

    References:
        Wu et al., 2022 (arXiv:2211.02077).
    """
    return _where_defined(cosines.agreement(gram), gram)


@samplewise
def cosine(gram: Tensor, k: int = 0, l: int = 1, **extras: Any) -> Tensor:
    """The cosine of one pair of gradients.

    Args:
        gram: Gram blocks (B, K, K).
        k: One loss.
        l: The other.
        **extras: Not used.

    Returns:
        Cosines (B,) in [-1, 1]; NaN where one of the two gradients is zero.

    Examples:
        >>> import torch, harmony
        >>> from functools import partial
        >>> of_last_two = partial(harmony.score.cosine, k=1, l=2)
        >>> of_last_two(torch.tensor([[[1.0, 0.0, 0.0], [0.0, 4.0, 3.0], [0.0, 3.0, 9.0]]]))
        tensor([0.5000])
    """
    both = (gram[:, k, k] > 0) & (gram[:, l, l] > 0)
    return torch.where(both, cosines.cosine(gram)[:, k, l], torch.nan)


@samplewise
def norm_ratio(gram: Tensor, **extras: Any) -> Tensor:
    """How equal the lengths of a sample's gradients are.

    Args:
        gram: Gram blocks (B, K, K).
        **extras: Not used.

    Returns:
        The least norm over the largest (B,), of the gradients that are not zero; in (0, 1].

    Examples:
        >>> import torch, harmony
        >>> harmony.score.norm_ratio(torch.tensor([[[4.0, 0.0], [0.0, 16.0]]]))
        tensor([0.5000])
    """
    blocks = unit_blocks(gram)
    return _where_defined(torch.where(blocks.active, blocks.norm, 1).amin(-1).to(gram.dtype), gram)


@samplewise
def gradient_norm(gram: Tensor, **extras: Any) -> Tensor:
    """Length of the gradient of a sample's summed losses. ``negative(gradient_norm)`` prefers the small ones.

    Args:
        gram: Gram blocks (B, K, K).
        **extras: Not used.

    Returns:
        ``|sum_k g_b^k|`` (B,).

    Examples:
        >>> import torch, harmony
        >>> harmony.score.gradient_norm(torch.tensor([[[9.0, 0.0], [0.0, 16.0]]]))
        tensor([5.])
    """
    return _where_defined(gram.sum((1, 2)).clamp(min=0).sqrt(), gram)


# ---------------------------------------------------------------------------------------------- functions of the extras
def batch_agreement(gram: Tensor, *, toward: Tensor | None = None, **extras: Any) -> Tensor:
    """Cosine between a sample's gradient and that of the rest of the batch, both of the summed losses.

    Args:
        gram: Gram blocks (B, K, K).
        toward: Inner products (B, K) with the gradient of the whole batch: what a step provides that was told
            ``toward_batch=True``. The sample's own share in it is taken out here.
        **extras: Not used.

    Returns:
        Cosines (B,) in [-1, 1]; 0 where the rest of the batch has no gradient.

    Raises:
        ValueError: No ``toward``, or one of another shape.

    Examples:
        >>> import torch, harmony
        >>> gram = torch.ones(3, 2, 2) / 4  # three unit gradients, in two halves each: e_1, e_1, -e_1
        >>> harmony.score.batch_agreement(gram, toward=torch.tensor([[0.5, 0.5], [0.5, 0.5], [-0.5, -0.5]]))
        tensor([ 0.,  0., -1.])
    """
    toward = needed("batch_agreement", "toward", toward, gram.shape[:2], "toward_batch=True")
    own = gram.sum((1, 2))
    whole = toward.sum()  # <g, g>, the batch's gradient with itself
    product = toward.sum(1) - own
    rest = (whole - 2 * toward.sum(1) + own).clamp(min=0)
    rest = torch.where(rest > torch.finfo(gram.dtype).eps * whole.abs(), rest, 0)  # what is left of rounding
    norm = own.clamp(min=0).sqrt() * rest.sqrt()
    return _where_defined(torch.where(norm > 0, product / torch.where(norm > 0, norm, 1), 0).clamp(-1, 1), gram)


@samplewise
def small_loss(
    gram: Tensor, *, terms: Tensor | None = None, losses: Sequence[int] | None = None, **extras: Any
) -> Tensor:
    """Minus a sample's own loss: the small-loss selection of learning with noisy labels, and the baseline to beat.

    Args:
        gram: Gram blocks (B, K, K).
        terms: Loss terms (B, K); a step provides them.
        losses: Numbers of the losses to add up; default all.
        **extras: Not used.

    Returns:
        ``-sum_k l_bk`` (B,).

    Raises:
        ValueError: No ``terms``, or terms of another shape.

    Examples:
        >>> import torch, harmony
        >>> harmony.score.small_loss(torch.eye(2)[None], terms=torch.tensor([[1.0, 2.0]]))
        tensor([-3.])

    References:
        Han et al., Co-teaching, 2018 (arXiv:1804.06872).
    """
    terms = needed("small_loss", "terms", terms, gram.shape[:2], "harmonized_grad or backward")
    chosen = terms if losses is None else terms[:, list(losses)]
    return _where_defined(-chosen.sum(1), gram)


@samplewise
def similarity(gram: Tensor, *, similarity: Tensor | None = None, **extras: Any) -> Tensor:
    """What the extras call similarity: of video and text, say.

    Args:
        gram: Gram blocks (B, K, K).
        similarity: Values (B,); a step provides them that was given ``extras=lambda f: {"similarity": ...}``, a
            function of the embeddings.
        **extras: Not used.

    Returns:
        The same values (B,), where the sample has an agreement.

    Raises:
        ValueError: No ``similarity``, or one of another shape.

    Examples:
        >>> import torch, harmony
        >>> harmony.score.similarity(torch.eye(2)[None], similarity=torch.tensor([0.3]))
        tensor([0.3000])
    """
    extra = 'extras=lambda embeddings: {"similarity": ...}'
    return _where_defined(needed("similarity", "similarity", similarity, gram.shape[:1], extra), gram)


# --------------------------------------------------------------------------------------------------------- combinations
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


class EmaState(NamedTuple):
    """State of a moving average: that of the score under it, and what is remembered of each sample."""

    score: State
    memory: Memory


def ema(score: AnyScore, decay: float = 0.9, capacity: int = 2**20) -> Score:
    """The moving average of a score over a sample's own history, by its id: one noisy step decides nothing.

    Memory is bounded: ``capacity`` places, of which each sample has one by the hash of its id. Where two samples share
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
        return EmaState(inner.init(), memory(capacity))

    @torch.no_grad()
    def update(gram: Tensor, state: EmaState, *, ids: Tensor | None = None, **extras: Any) -> tuple[Tensor, EmaState]:
        ids = needed("ema", "ids", ids, gram.shape[:1], "ids=")
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


def _where_defined(values: Tensor, gram: Tensor) -> Tensor:
    return torch.where(cosines.defined(gram), values, torch.nan)
