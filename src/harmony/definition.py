"""What the numbers mean, on ``torch.func`` alone: short and slow. Every engine must agree with it.

Indices: ``b`` sample, ``r`` row of the loss terms, ``k, l`` loss. ``J_b`` is the derivative of ``f_b`` by ``params``.

    f_b        = encode(params, sample_b)       one sample at a time
    l_rk       = losses(f_1, ..., f_B)[k][r]    each sample's own term, coupled over the batch; L_k = mean_r l_rk
    C[k, r, b] = (d l_rk / d f_b) / B           what the term of sample r sends into the encoder of sample b

    g_b^k      = J_b^T sum_r C[k, r, b]         "activation": the whole loss through the encoder of sample b
               = sum_r J_r^T C[k, b, r]         "loss": the term of sample b through the encoders of all samples
               = J_b^T C[k, b, b]               "anchor": the term of sample b through the encoder of sample b

    G[b, k, l] = <g_b^k, g_b^l>
    pullback(W) = sum_bk W_bk g_b^k             "activation"
                = grad of sum_bk W_bk l_bk / B  "loss" and "anchor"

Under "activation" and "loss" the gradients of all samples add up to that of the mean losses; under "anchor" they
do not: it is a score. With weights of one every pullback is the gradient of the mean losses.

The encoder must be one that ``torch.func`` can differentiate. Torch's attention in eval mode takes a fast path that has
no derivative; the engines switch it off.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import jacrev, vjp, vmap
from torch.utils import _pytree as pytree

PyTree = Any
Attribution = Literal["activation", "loss", "anchor"]


class Definition(NamedTuple):
    """What [gram_vjp][harmony.gram_vjp] returns, by definition.

    Attributes:
        values: {name: mean loss}.
        terms: Loss terms (B, K).
        gram: Gram blocks (groups, K, K).
        embeddings: The tree of embeddings.
        pullback: Weights (groups, K) -> gradient in the tree of the parameters.
    """

    values: dict[str, Tensor]
    terms: Tensor
    gram: Tensor
    embeddings: PyTree
    pullback: Callable[[Tensor], PyTree]


def gram_vjp(
    encode: Callable[[PyTree, PyTree], PyTree],
    losses: Callable[[PyTree], Mapping[str, Tensor]],
    params: PyTree,
    batch: PyTree,
    *,
    attribution: Attribution = "activation",
    group_size: int = 1,
) -> Definition:
    """Loss terms, Gram blocks of per-sample gradients, and the pullback of weights.

    Args:
        encode: ``encode(params, batch)`` -> tree of tensors (B, ...).
        losses: ``losses(embeddings)`` -> {name: (B,) terms or a scalar}.
        params: Tree of tensors.
        batch: Tree of tensors (B, ...).
        attribution: Which reading of "the gradient of a sample under a loss".
        group_size: Consecutive samples whose gradients are summed before the Gram.

    Returns:
        A [Definition][harmony.definition.Definition].

    Examples:
        >>> encode = lambda params, x: x @ params["w"]
        >>> losses = lambda f: {"first": f[:, 0], "second": f[:, 0] - f[:, 1]}
        >>> gram_vjp(encode, losses, {"w": torch.eye(2)}, torch.ones(1, 2)).gram
        tensor([[[2., 2.],
                 [2., 4.]]])
    """
    params_spec = pytree.tree_structure(params)
    encoded, spec = encode_each(encode, params, batch)
    size = len(encoded.features[0])

    def terms_of(features: Sequence[Tensor]) -> dict[str, Tensor]:
        """Loss terms {name: (B,)} of the embeddings that depend on the parameters."""
        outputs = losses(pytree.tree_unflatten(encoded.merge(features), spec))
        return {name: term.expand(size) for name, term in outputs.items()}

    terms = terms_of(encoded.features)
    sent = [[c / size for c in leaves] for leaves in jacrev(terms_of)(encoded.features).values()]  # C[k]: (B, B, ...)
    grads = [gradients(encoded.pull, loss, attribution) for loss in sent]
    gram = gram_blocks([[sum_groups(g, group_size) for g in loss] for loss in grads])

    def pullback(weights: Tensor) -> PyTree:
        rows = weights.repeat_interleave(group_size, 0)[:size]
        if attribution == "activation":
            update = [torch.einsum("bk,kb...->...", rows, torch.stack(g)) for g in zip(*grads, strict=True)]
        else:
            weighted = [torch.einsum("rk,krb...->b...", rows, torch.stack(c)) for c in zip(*sent, strict=True)]
            update = [g.sum(0) for g in encoded.pull(weighted)]
        return pytree.tree_unflatten(update, params_spec)

    embeddings = pytree.tree_unflatten(encoded.merge(encoded.features), spec)
    values = {name: term.mean() for name, term in terms.items()}
    return Definition(values, torch.stack(list(terms.values()), 1), gram, embeddings, pullback)


def gradients(
    pull: Callable[[Sequence[Tensor]], list[Tensor]], sent: Sequence[Tensor], attribution: Attribution
) -> list[Tensor]:
    """Gradients (B, *p) of every sample under one loss, given what every term sends to every sample, (B, B, ...)."""
    if attribution == "activation":
        return pull([c.sum(0) for c in sent])
    if attribution == "anchor":
        return pull([c.diagonal().movedim(-1, 0) for c in sent])
    rows = [pull(row) for row in zip(*sent, strict=True)]
    return [torch.stack([g.sum(0) for g in column]) for column in zip(*rows, strict=True)]


def gram_blocks(grads: Sequence[Sequence[Tensor]]) -> Tensor:
    """``G[b, k, l] = <g_b^k, g_b^l>``, (B, K, K), of K lists of gradients (B, *p)."""
    rows = torch.stack([torch.cat([g.flatten(1) for g in loss], 1) for loss in grads], 1)
    return rows @ rows.mT


def sum_groups(grads: Tensor, group_size: int) -> Tensor:
    """Sum the gradients (B, *p) of consecutive samples: (groups, *p)."""
    if group_size == 1:
        return grads
    return torch.stack([group.sum(0) for group in torch.split(grads, group_size)])


class EncodedSamples(NamedTuple):
    """A batch that was encoded sample by sample.

    Attributes:
        features: The outputs that depend on the parameters, (B, ...).
        constants: The other outputs, (B, ...).
        tracked: For each output, whether it depends on the parameters.
        pull: Cotangents of the features -> gradients (B, *p).
    """

    features: list[Tensor]
    constants: list[Tensor]
    tracked: list[bool]
    pull: Callable[[Sequence[Tensor]], list[Tensor]]

    def merge(self, features: Sequence[Tensor]) -> list[Tensor]:
        """All outputs in their order, with these features."""
        sources = {True: iter(features), False: iter(self.constants)}
        return [next(sources[tracked]) for tracked in self.tracked]


def encode_each(
    encode: Callable[[PyTree, PyTree], PyTree], params: PyTree, batch: PyTree
) -> tuple[EncodedSamples, Any]:
    """Encode every sample of a batch by itself: the encoded samples, and the tree specification of their embeddings."""
    leaves, params_spec = pytree.tree_flatten(params)
    samples, batch_spec = pytree.tree_flatten(batch)
    specs: list[Any] = []

    def one(params: list[Tensor], sample: list[Tensor]) -> tuple[Tensor, ...]:
        """Encode a batch of one sample."""
        rows = pytree.tree_unflatten([x[None] for x in sample], batch_spec)
        outputs, spec = pytree.tree_flatten(encode(pytree.tree_unflatten(params, params_spec), rows))
        specs.append(spec)
        return tuple(output[0] for output in outputs)

    return encode_samples(one, leaves, samples), specs[0]


def encode_samples(
    one: Callable[[list[Tensor], list[Tensor]], tuple[Tensor, ...]],
    params: Sequence[Tensor],
    samples: Sequence[Tensor],
    selected: Sequence[bool] | None = None,
    inspect: Callable[[list[Tensor], list[Tensor]], None] | None = None,
) -> EncodedSamples:
    """Encode samples with ``vmap``, each by parameters of its own, and pull back with ``vjp``.

    Args:
        one: The encoder of one sample, without leading axis.
        params: Parameters.
        samples: Leaves (B, ...) of the batch.
        selected: The parameters that have a gradient for each sample; default all. Others have one for the batch, (*p).
        inspect: Sees the features and the parameters while both are traced.

    Returns:
        The encoded samples.
    """
    selected = [True] * len(params) if selected is None else selected
    in_dims = ([0 if s else None for s in selected], 0)
    tracked: list[bool] = []

    def run(params: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        outputs = vmap(one, in_dims=in_dims, randomness="different")(params, list(samples))
        tracked[:] = [output.requires_grad for output in outputs]
        features = [output for output, t in zip(outputs, tracked, strict=True) if t]
        if inspect is not None:
            inspect(features, params)
        return features, [output for output, t in zip(outputs, tracked, strict=True) if not t]

    expanded = [
        p.detach().expand(len(samples[0]), *p.shape) if s else p.detach() for p, s in zip(params, selected, strict=True)
    ]
    with torch.no_grad():  # no graph but that of vjp
        features, pull, constants = vjp(run, expanded, has_aux=True)  # type: ignore[misc]

    def pull_back(cotangents: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return list(pull(list(cotangents))[0])

    return EncodedSamples(features, constants, tracked, pull_back)
