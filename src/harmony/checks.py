"""Whether the fast engine does an encoder right."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from harmony.deviation import deviations
from harmony.engines.call import EncoderCall
from harmony.engines.fallback import ROUNDING, run_reference, together_and_alone
from harmony.engines.options import Engine
from harmony.engines.precision import inner_products
from harmony.engines.random import replay, snapshot
from harmony.engines.reference import MaterializedGradients, run_vmap
from harmony.engines.run import Cotangent, Run, narrow_all
from harmony.engines.tape.engine import Recorded, record
from harmony.parameters import Wrt
from harmony.plans import Labels, PyTree, activation_cotangents, as_call

SAMPLES = 4
"""Samples of which the gradients are compared: the first, the last, and some between."""


class Check(NamedTuple):
    """Largest deviations of the tape from the reference, each relative to its own scale.

    Attributes:
        gram: Of the Gram blocks, those of each parameter and those over all: relative to the largest entry of a block.
        update: Of the update: relative to the largest entry of the parameter.
        embeddings: Of the embeddings of every sample alone from those in the batch, with dropout switched off; None
            where the encoder draws other random numbers.
        reference: What Gram and update were compared with.
        parameter: Where Gram or update deviate most.
    """

    gram: float
    update: float
    embeddings: float | None
    reference: str
    parameter: str


def check(
    *arguments: Any,
    forward: Callable[[nn.Module, Any], PyTree] | None = None,
    loss_params: PyTree | None = None,
    wrt: Wrt | None = None,
    labels: Labels | None = None,
    group_size: int = 1,
    engine: Engine = Engine(),  # noqa: B008
) -> Check:
    """Compare the tape with the definition on four samples of a batch, and raise where they differ.

    Run it once on a new encoder. It also finds what no gradient shows: samples whose embeddings depend on their
    neighbours, or on their place in the batch. An encoder that draws random numbers, and sums over groups, are compared
    with ordinary backward passes through the same graph. Gradients that are mere rounding are held to the largest.

    Args:
        *arguments: ``encode, losses, params, batch`` as in [gram_vjp][harmony.gram_vjp], or ``module, batch, losses``
            as in [backward][harmony.backward]. All of the batch is encoded at once, and sample by sample.
        forward: As in [backward][harmony.backward], for a module.
        loss_params: As in [gram_vjp][harmony.gram_vjp], for functions, like all other keywords.

    Returns:
        A [Check][harmony.Check].

    Raises:
        ValueError: They differ by more than rounding, the encoder mixes samples, or something is not finite.
        NotImplementedError: The tape cannot record the encoder.

    Examples:
        >>> losses = lambda f: {"left": f[:, 0], "right": f[:, 1]}
        >>> harmony.check(torch.nn.Linear(3, 2), torch.ones(4, 3), losses).reference
        'vmap'
    """
    with as_call(arguments, forward, loss_params, wrt, labels, group_size) as (call, losses, loss_params):
        before = snapshot(call.params)
        recorded = record(call)
        run = recorded.run(call, engine)
        tolerance = max(ROUNDING.get(kind, 0.0) for kind in recorded.dtypes)  # of the least precise at work
        random = not before.equal(snapshot(call.params))
        embeddings = _compare_embeddings(call, run.tracked, tolerance)
        per_loss = activation_cotangents(run, call, losses, loss_params)
        samples = _spread(call.size)
        if random:
            reference, grads = "backward passes through the same graph", _pull_groups(run, per_loss, samples[:, None])
        else:
            reference, grads = _reference_gradients(call, per_loss, samples)
        comparison = _Comparison(recorded, engine, per_loss, tolerance)
        result = comparison.run(call._replace(group_size=1), samples, grads)
        if group_size > 1:
            groups = torch.split(torch.arange(call.size, device="cpu"), group_size)
            numbers = _spread(len(groups))
            grads = _pull_groups(run, per_loss, [groups[g] for g in numbers.tolist()])
            result = max(result, comparison.run(call, numbers, grads), key=lambda r: max(r.gram, r.update))
    if not max(result.gram, result.update) <= tolerance:
        raise ValueError(
            f"the tape differs from {reference} by {result.gram:.1e} in the Gram blocks and {result.update:.1e} in the "
            f"update (worst: parameter {result.parameter!r}); expected at most {tolerance:.0e}. Use "
            'engine=harmony.Engine(method="vmap"), and please report the encoder.'
        )
    return result._replace(embeddings=embeddings, reference=reference)


def _reference_gradients(
    call: EncoderCall, per_loss: Sequence[Cotangent], samples: Tensor
) -> tuple[str, list[list[Tensor]]]:
    """Name of the reference, and the gradients by all parameters of a few samples that it encodes by themselves."""
    few = call._replace(label=[0] * len(call.names), labels=[]).select(samples)
    run, engine, _ = run_reference(few)
    gradients = run.per_sample(narrow_all(per_loss, samples), False)
    assert isinstance(gradients, MaterializedGradients)
    return "vmap" if engine is run_vmap else "a loop over samples", gradients.grads


def _compare_embeddings(call: EncoderCall, tracked: Sequence[bool], tolerance: float) -> float | None:
    """How far embeddings of samples alone are from those in the batch; a ValueError where it is more than rounding."""
    with replay(snapshot(call.params)):
        pair = together_and_alone(call)
    if pair is None:
        return None
    together, alone = ([leaf for leaf, t in zip(leaves, tracked, strict=True) if t] for leaves in pair)
    if not all(bool(leaf.isfinite().all()) for leaf in together):
        raise ValueError("the embeddings are not finite: check compares numbers. Is there NaN in parameters or batch?")
    tolerance = min(tolerance, ROUNDING[torch.float32])  # these embeddings were computed in full precision
    result = max(deviations(together, alone, tolerance / 100))
    if result > tolerance:
        raise ValueError(
            "encode mixes the samples of the batch: the embeddings of samples alone differ from theirs in the batch by "
            f"{result:.1e} (relative). Gradients of single samples are not defined."
        )
    return result


class _Comparison(NamedTuple):
    """Compares what the tape makes of a recorded run with gradients that are known."""

    recorded: Recorded
    engine: Engine
    per_loss: Sequence[Cotangent]
    tolerance: float

    def run(self, call: EncoderCall, groups: Tensor, grads: Sequence[Sequence[Tensor]]) -> Check:
        """Compare Gram blocks and a weighted update with gradients (n, *shape), K lists of them, of some groups."""
        gradients = self._gradients(call)
        gram = gradients.gram(call.group_size)
        weights = torch.zeros_like(gram[:, :, 0])
        weights[groups] = torch.linspace(0.5, 1.5, weights.shape[2]).to(weights) + groups.to(weights)[:, None, None] / 9
        update = gradients.combine(weights.repeat_interleave(call.group_size, 0)[: call.size])
        alone = call._replace(label=list(range(len(call.names))), labels=call.names)
        by_parameter = self._gradients(alone).gram(call.group_size)[groups]

        stacks = [torch.stack(g) for g in zip(*grads, strict=True)]  # (K, n, *shape), by parameter
        own = [weights[groups, label] if label >= 0 else weights[groups].mean(1) for label in call.label]
        expected = [torch.einsum("bk,kb...->...", w.to(g.dtype), g) for w, g in zip(own, stacks, strict=True)]
        for name, g in zip(call.names, expected, strict=True):
            if not bool(g.isfinite().all()):
                raise ValueError(f"the gradient of parameter {name!r} is not finite: check compares numbers.")
        expected_grams = torch.stack([inner_products([[g] for g in stack]) for stack in stacks])
        labels = torch.tensor(call.label, device=gram.device)
        totals = [expected_grams[labels == n].sum(0) for n in range(gram.shape[1])]

        floor = self.tolerance / 100  # below it a gradient is zero but for rounding
        update_errors = deviations([g[None] for g in update], [g[None] for g in expected], floor)
        gram_errors = deviations(list(by_parameter.unbind(1)), list(expected_grams), floor**2)
        total_errors = deviations(list(gram[groups].unbind(1)), totals, floor**2)
        worst = max(range(len(call.names)), key=lambda p: max(update_errors[p], gram_errors[p]))
        return Check(max(gram_errors + total_errors), max(update_errors), None, "", call.names[worst])

    def _gradients(self, call: EncoderCall) -> Any:
        return self.recorded.run(call, self.engine).per_sample(self.per_loss, False)


def _spread(size: int) -> Tensor:
    """The first, the last, and some between."""
    return torch.linspace(0, size - 1, min(SAMPLES, size), device="cpu").round().long()


def _pull_groups(run: Run, per_loss: Sequence[Cotangent], groups: Iterable[Tensor]) -> list[list[Tensor]]:
    """Gradients of some groups of samples, K lists of leaves (n, *shape), by a backward pass for each and each loss."""
    grads: list[list[list[Tensor]]] = [[] for _ in per_loss]
    for samples in groups:
        for rows, cotangent in zip(grads, per_loss, strict=True):
            masks = [None if c is None else torch.zeros_like(c) for c in cotangent]
            for mask, c in zip(masks, cotangent, strict=True):
                if mask is not None and c is not None:
                    mask[samples] = c[samples]
            rows.append(run.pull(masks))
    return [[torch.stack(column) for column in zip(*rows, strict=True)] for rows in grads]
