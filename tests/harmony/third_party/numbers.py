"""Per-parameter Gram blocks and a weighted update: of an engine, and by hand."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import harmony
from tests.harmony.third_party.case import Case


class Numbers(NamedTuple):
    """What is compared.

    Attributes:
        gram: {parameter: (B, K, K)}.
        update: {parameter: gradient weighted by ``weights``}.
    """

    gram: dict[str, Tensor]
    update: dict[str, Tensor]


def weights(gram: Tensor) -> Tensor:
    """A weight for each sample and loss, some of them zero and some negative."""
    rows, losses = gram.shape[:2]
    return torch.arange(rows * losses, dtype=gram.dtype).mul(0.7).sin().round(decimals=1).view(rows, losses)


def of_engine(case: Case, method: str, *, by_parameter: bool) -> Numbers:
    """By ``gram_vjp``; without ``by_parameter`` there is one Gram, under the name "all"."""
    label = (lambda name: name) if by_parameter else None
    result = harmony.gram_vjp(*case.arguments, labels=label, engine=harmony.Engine(method=method))
    grams = result.gram if by_parameter else {"all": result.gram}
    return Numbers(grams, result.pullback(weights(next(iter(grams.values())))))


def by_hand(case: Case) -> Numbers:
    """By ``loss.backward()`` on the module itself, once for each sample and loss, from the definition and nothing else.

    A copy of the module each time, as some keep tensors from one call to the next; the case has to be a fresh one.
    Every sample is encoded beside a copy of itself: in a batch of one, torch's backward pass of batch normalisation is
    wrong for gradients in another memory format.
    """
    size = len(pytree.tree_leaves(case.batch)[0])
    samples = [pytree.tree_map(lambda x, b=b: x[[b, b]], case.batch) for b in range(size)]
    with torch.no_grad():
        rows = torch.cat([case.forward(copy.deepcopy(case.module), sample)[:1] for sample in samples])
    grads: dict[str, list[Tensor]] = {n: [] for n in case.params}
    for b, sample in enumerate(samples):
        for loss in case.losses(rows):
            module = copy.deepcopy(case.module)
            live = torch.cat([rows[:b], case.forward(module, sample)[:1], rows[b + 1 :]])
            case.losses(live)[loss].mean().backward()
            for n, w in module.named_parameters():
                if n in grads:
                    grads[n].append(torch.zeros_like(w) if w.grad is None else w.grad)
    stacked = {n: torch.stack(g).unflatten(0, (size, -1)) for n, g in grads.items()}
    flat = {n: g.reshape(*g.shape[:2], -1) for n, g in stacked.items()}
    gram = {n: g @ g.mT for n, g in flat.items()}
    chosen = weights(next(iter(gram.values())))
    return Numbers(gram, {n: torch.einsum("bk,bk...->...", chosen, g) for n, g in stacked.items()})


def summed(numbers: Numbers) -> Numbers:
    """With one Gram over all parameters."""
    return numbers._replace(gram={"all": torch.stack(list(numbers.gram.values())).sum(0)})


def worst(got: Numbers, expected: Numbers, tolerance: float) -> tuple[float, str]:
    """The largest error of all, relative to each parameter's own scale, and where it is.

    A gradient that is zero but for rounding has no scale: below the rounding of the largest gradient, the error is
    relative to that.
    """
    rounding = 64 * torch.finfo(next(iter(got.update.values())).dtype).eps / tolerance
    errors = [
        *_relative(got.update, expected.update, rounding, "update of "),
        *_relative(got.gram, expected.gram, rounding**2, "Gram over "),
    ]
    return max(errors)


def _relative(
    got: dict[str, Tensor], expected: dict[str, Tensor], rounding: float, what: str
) -> list[tuple[float, str]]:
    if got.keys() != expected.keys():
        raise AssertionError(f"{what}other parameters: {got.keys() ^ expected.keys()}")
    scales = {n: float(x.abs().max()) for n, x in expected.items()}
    largest = max(scales.values())
    errors = []
    for n, x in expected.items():
        error = float((got[n] - x).abs().max()) / (scales[n] + rounding * largest or 1.0)
        errors.append((error if error == error else float("inf"), what + n))
    return errors
