"""The losses stage: loss terms on the embeddings, and the cotangents that each attribution sends into the encoder."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from harmony.distributed.shares import Shares
from harmony.engines.eager import eagerly
from harmony.engines.encoded import Cotangent, Encoded, Trace
from harmony.engines.paths import paths
from harmony.modules import OwnParameters

ROWS_AT_ONCE = 64  # rows of the Jacobian of the loss terms held at a time where no chunk size bounds them


class LossStage(NamedTuple):
    """The losses, evaluated once on embeddings cut off from the encoder; the graph behind them is kept.

    Attributes:
        terms: {name: (B,)} loss terms.
        scalar: Names of the losses that were given as one scalar, repeated in ``terms``.
        leaves: The tracked embedding leaves, (B, ...), that the cotangents belong to.
        embeddings: The tree of embeddings the losses saw.
        params: Flattened parameters of the losses (empty without), and their tree specification.
        params_spec: See ``params``.
        loss_scale: What every gradient of this stage is multiplied by, without axes; None for 1.
    """

    terms: dict[str, Tensor]
    scalar: list[str]
    leaves: list[Tensor]
    embeddings: Any
    params: list[Tensor]
    params_spec: Any
    loss_scale: Tensor | None = None

    @property
    def size(self) -> int:
        """B, the number of samples."""
        return len(next(iter(self.terms.values())))

    @property
    def device(self) -> torch.device:
        """Where the losses are."""
        return next(iter(self.terms.values())).device

    def scaled(self, loss: Tensor) -> Tensor:
        """What is differentiated in place of a loss."""
        return loss if self.loss_scale is None else loss * self.loss_scale

    def unscaled(self, products: Tensor) -> Tensor:
        """Inner products of gradients without the scale; divided twice, since its square may overflow."""
        return products if self.loss_scale is None else products / self.loss_scale / self.loss_scale


def evaluate(
    losses: Callable[..., Mapping[str, Tensor]], loss_params: Any, encoded: Encoded | Trace, shared: Shares,
    loss_scale: Tensor | None = None,
) -> LossStage:  # fmt: skip
    """Run the losses stage once, on the embeddings of the whole batch, whichever process encoded them."""
    whole, size = shared.gather_tree(encoded.leaves), shared.size
    leaves = [leaf.detach().requires_grad_() if t else leaf for leaf, t in zip(whole, encoded.tracked, strict=True)]
    embeddings = pytree.tree_unflatten(leaves, encoded.spec)
    params, params_spec = pytree.tree_flatten(loss_params)
    if loss_params is not None and not isinstance(losses, OwnParameters):
        params = [p.detach().requires_grad_() for p in params]
    with torch.enable_grad(), eagerly():
        if loss_params is None:
            outputs = losses(embeddings)
        else:
            outputs = losses(pytree.tree_unflatten(params, params_spec), embeddings)
        terms = _as_terms(outputs, size)
    _require_no_others(terms.values(), [*leaves, *params], losses)
    return LossStage(
        terms=terms,
        scalar=[name for name, value in outputs.items() if value.ndim == 0],
        leaves=[leaf for leaf, t in zip(leaves, encoded.tracked, strict=True) if t],
        embeddings=embeddings,
        params=params if loss_params is not None else [],
        params_spec=params_spec,
        loss_scale=loss_scale,
    )


@torch.enable_grad()  # the caller may have switched it off
def activation(stage: LossStage) -> list[Cotangent]:
    """``dL_k/df``: K cotangents with leaves (B, ...), the gradients of the mean losses."""
    return [_grad(stage.scaled(term.mean()), stage.leaves) for term in stage.terms.values()]


@torch.enable_grad()
def rows(stage: LossStage, members: Tensor, groups: range) -> list[Cotangent]:
    """``sum_(b in g) d l_bk/df / B`` for a range of groups: K cotangents with leaves (len(groups), B, ...).

    ``members`` (B,) is the group of each sample.
    """
    _require_terms(stage, "loss")
    wanted = torch.arange(groups.start, groups.stop, device=members.device)
    return _jacobian(stage, members == wanted[:, None])


@torch.enable_grad()
def anchor(stage: LossStage, samples: slice, rows_at_once: int | None) -> list[Cotangent]:
    """``(d l_bk/df_b) / B`` of some samples: K cotangents with leaves (n, ...), each own term at its own embedding."""
    _require_terms(stage, "anchor")
    basis = torch.eye(stage.size, device=stage.device).bool()[samples]
    parts: list[list[Cotangent]] = []
    start = samples.start
    for rows in torch.split(basis, rows_at_once or ROWS_AT_ONCE):
        own = torch.arange(len(rows), device=rows.device)
        parts.append([[None if j is None else j[own, start + own] for j in k] for k in _jacobian(stage, rows)])
        start += len(rows)
    return [
        [None if leaf[0] is None else torch.cat([x for x in leaf if x is not None]) for leaf in zip(*k, strict=True)]
        for k in zip(*parts, strict=True)
    ]


@torch.enable_grad()
def weighted(stage: LossStage, weights: Tensor) -> Cotangent:
    """Gradient of ``sum_bk W_bk l_bk / B`` by the leaves, (B, ...); weights (B, K)."""
    return _grad(_weighted_mean(stage, weights), stage.leaves)


@torch.enable_grad()
def loss_gradient(stage: LossStage, weights: Tensor) -> Any:
    """Gradient of ``sum_bk W_bk l_bk / B`` by the losses' parameters, in their tree; weights (B, K)."""
    grads = _grad(_weighted_mean(stage, weights), stage.params)
    grads = [torch.zeros_like(p) if g is None else g for p, g in zip(stage.params, grads, strict=True)]
    return pytree.tree_unflatten(grads, stage.params_spec)


def _weighted_mean(stage: LossStage, weights: Tensor) -> Tensor:
    columns = weights.unbind(1)
    total = sum((w * term).mean() for w, term in zip(columns, stage.terms.values(), strict=True))
    assert isinstance(total, Tensor)
    return stage.scaled(total)


@eagerly()
def _grad(total: Tensor, inputs: Sequence[Tensor]) -> list[Tensor | None]:
    if not inputs or not total.requires_grad:
        return [None] * len(inputs)
    return list(torch.autograd.grad(total, inputs, retain_graph=True, allow_unused=True))


@eagerly()
def _jacobian(stage: LossStage, basis: Tensor) -> list[Cotangent]:
    """Rows ``basis @ d l_k/df / B`` for a boolean basis (n, B)."""
    jacobian: list[Cotangent] = []
    for term in stage.terms.values():
        if not term.requires_grad:
            jacobian.append([None] * len(stage.leaves))
            continue
        basis_of_term = stage.scaled(basis.to(term.dtype) / stage.size)
        jacobian.append(
            torch.autograd.grad(
                term, stage.leaves, basis_of_term, retain_graph=True, allow_unused=True, is_grads_batched=True
            )
        )
    return jacobian


def _as_terms(outputs: Any, size: int) -> dict[str, Tensor]:
    if not isinstance(outputs, Mapping) or not outputs:
        raise TypeError(
            "losses must return a dictionary of at least one loss, {name: (B,) terms or a scalar}; "
            f"got {outputs!r:.200}"
        )
    for name, value in outputs.items():
        if not isinstance(value, Tensor) or value.shape not in ((), (size,)):
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"loss {name!r} must be a scalar or have one term per sample, shape ({size},); got {got}. "
                'Ask the loss for its terms (reduction="none") and average over everything but the samples.'
            )
    return {name: value.expand(size) if value.ndim == 0 else value for name, value in outputs.items()}


def _require_no_others(terms: Iterable[Tensor], own: Sequence[Any], losses: Any) -> None:
    """Raise a ValueError where the losses depend on more than the embeddings and their own parameters.

    A function may close over a module whose parameters are not trained here; what leads back into the encoder may not.
    """
    known = set(map(id, own))
    for leaf in paths(terms).leaves:
        if id(leaf) not in known:
            if isinstance(losses, OwnParameters):
                losses.require_own(leaf)
            if not isinstance(leaf, nn.Parameter):
                raise ValueError(
                    f"losses uses a trainable tensor of shape {tuple(leaf.shape)} that is neither an embedding nor one "
                    "of loss_params: its gradient would be lost. Return it from encode as an embedding, one row for "
                    "each sample, pass it in loss_params, or detach it."
                )


def _require_terms(stage: LossStage, attribution: str) -> None:
    if stage.scalar:
        raise ValueError(
            f"attribution={attribution!r} needs each sample's own loss term, shape ({stage.size},); these losses came "
            f'as one scalar: {", ".join(map(repr, stage.scalar))}. Return the terms, or use attribution="activation".'
        )
