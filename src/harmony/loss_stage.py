"""The losses stage: loss terms on the embeddings, and the cotangents that each attribution sends into the encoder."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from harmony.distributed.batch_split import BatchSplit
from harmony.engines.chunked import EncodedBatch
from harmony.engines.eager import eagerly
from harmony.engines.paths import paths
from harmony.engines.run import Cotangent, Run
from harmony.modules import ModuleFunction

ROWS_AT_ONCE = 64
"""Rows of the Jacobian of the loss terms that are held at a time, where no chunk size bounds them."""


class LossStage:
    """The losses, evaluated once on embeddings that are cut off from the encoder; the graph behind them is kept.

    Attributes:
        terms: {name: (B,)} loss terms.
        leaves: The tracked embedding leaves, (B, ...), that the cotangents belong to.
        embeddings: The tree of embeddings that the losses saw.
    """

    def __init__(
        self,
        losses: Callable[..., Mapping[str, Tensor]],
        loss_params: Any,
        encoded: EncodedBatch | Run,
        split: BatchSplit,
        loss_scale: Tensor | None = None,
    ) -> None:
        """Run the losses on the embeddings of the whole batch, whichever process encoded them.

        Args:
            losses: The losses.
            loss_params: Tree of their parameters; None without.
            encoded: The embeddings of this process.
            split: How the batch is split over processes.
            loss_scale: What every gradient of this stage is multiplied by, without axes; None for 1.
        """
        self.size = split.size
        self.loss_scale = loss_scale
        leaves = [
            leaf.detach().requires_grad_() if tracked else leaf
            for leaf, tracked in zip(split.gather_tree(encoded.leaves), encoded.tracked, strict=True)
        ]
        self.leaves = [leaf for leaf, tracked in zip(leaves, encoded.tracked, strict=True) if tracked]
        self.embeddings = pytree.tree_unflatten(leaves, encoded.spec)
        self.params, self.params_spec = pytree.tree_flatten({} if loss_params is None else loss_params)
        if not isinstance(losses, ModuleFunction):
            self.params = [p.detach().requires_grad_() for p in self.params]
        with torch.enable_grad(), eagerly():
            first = [] if loss_params is None else [pytree.tree_unflatten(self.params, self.params_spec)]
            outputs = losses(*first, self.embeddings)
            _require_terms(outputs, self.size)
            self.terms = {name: x.expand(self.size) if x.ndim == 0 else x for name, x in outputs.items()}
        self.scalars = [name for name, value in outputs.items() if value.ndim == 0]
        _require_no_strays(self.terms.values(), [*leaves, *self.params], losses)

    @property
    def device(self) -> torch.device:
        """Where the losses are."""
        return next(iter(self.terms.values())).device

    def unscaled(self, grads: Tensor) -> Tensor:
        """Gradients without the scale. A Gram holds its square, which may overflow: divide twice."""
        return grads if self.loss_scale is None else grads / self.loss_scale

    @torch.enable_grad()  # the caller may have switched it off
    def activation(self) -> list[Cotangent]:
        """``dL_k/df``: K cotangents with leaves (B, ...), the gradients of the mean losses."""
        return [self._grad(term.mean(), self.leaves) for term in self.terms.values()]

    def rows(self, members: Tensor, groups: range) -> list[Cotangent]:
        """``sum_(b in g) d l_bk/df / B`` for a range of groups: K cotangents with leaves (len(groups), B, ...).

        ``members`` (B,) is the group of each sample.
        """
        self._require_no_scalars("loss")
        numbers = torch.arange(groups.start, groups.stop, device=members.device)
        return self._jacobian(members == numbers[:, None])

    def anchor(self, samples: slice, rows_at_once: int | None) -> list[Cotangent]:
        """``(d l_bk/df_b) / B`` of some samples: K cotangents with leaves (n, ...), own term, own embedding."""
        self._require_no_scalars("anchor")
        basis = torch.eye(self.size, device=self.device).bool()[samples]
        parts: list[list[Cotangent]] = []
        start = samples.start
        for rows in torch.split(basis, rows_at_once or ROWS_AT_ONCE):
            number = torch.arange(len(rows), device=rows.device)
            jacobian = self._jacobian(rows)
            parts.append([[None if j is None else j[number, start + number] for j in leaves] for leaves in jacobian])
            start += len(rows)
        return [[_joined(leaf) for leaf in zip(*chunks, strict=True)] for chunks in zip(*parts, strict=True)]

    @torch.enable_grad()
    def weighted(self, weights: Tensor) -> Cotangent:
        """Gradient of ``sum_bk W_bk l_bk / B`` by the leaves, (B, ...); weights (B, K)."""
        return self._grad(self._weighted_mean(weights), self.leaves)

    @torch.enable_grad()
    def loss_gradient(self, weights: Tensor) -> list[Tensor]:
        """Gradient of ``sum_bk W_bk l_bk / B`` by the parameters of the losses; weights (B, K)."""
        grads = self._grad(self._weighted_mean(weights), self.params)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(self.params, grads, strict=True)]

    def _weighted_mean(self, weights: Tensor) -> Tensor:
        pairs = zip(weights.unbind(1), self.terms.values(), strict=True)
        return functools.reduce(torch.add, [(w * term).mean() for w, term in pairs])

    def _scaled(self, loss: Tensor) -> Tensor:
        return loss if self.loss_scale is None else loss * self.loss_scale

    @eagerly()
    def _grad(self, total: Tensor, inputs: Sequence[Tensor]) -> list[Tensor | None]:
        if not inputs or not total.requires_grad:
            return [None] * len(inputs)
        return list(torch.autograd.grad(self._scaled(total), inputs, retain_graph=True, allow_unused=True))

    @eagerly()
    @torch.enable_grad()
    def _jacobian(self, basis: Tensor) -> list[Cotangent]:
        """Rows ``basis @ d l_k/df / B`` for a boolean basis (n, B)."""
        jacobian: list[Cotangent] = []
        for term in self.terms.values():
            rows = self._scaled(basis.to(term.dtype) / self.size)
            options: dict[str, Any] = {"retain_graph": True, "allow_unused": True, "is_grads_batched": True}
            unreached = [None] * len(self.leaves)
            jacobian.append(
                torch.autograd.grad(term, self.leaves, rows, **options) if term.requires_grad else unreached
            )
        return jacobian

    def _require_no_scalars(self, attribution: str) -> None:
        if self.scalars:
            raise ValueError(
                f"attribution={attribution!r} needs each sample's own loss term, shape ({self.size},); these losses "
                f"came as one scalar: {', '.join(map(repr, self.scalars))}. Return the terms, or use "
                'attribution="activation".'
            )


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Rows of one leaf, put together; None where the loss does not reach it."""
    tensors = [part for part in parts if part is not None]
    return torch.cat(tensors) if tensors else None


def _require_terms(outputs: Any, size: int) -> None:
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


def _require_no_strays(terms: Iterable[Tensor], inputs: Sequence[Any], losses: Any) -> None:
    """Raise a ValueError where the losses depend on more than the embeddings and their own parameters.

    A function may close over a module whose parameters are not trained here; what leads back into the encoder may not.
    """
    known = set(map(id, inputs))
    for leaf in (leaf for leaf in paths(terms).leaves if id(leaf) not in known):
        if isinstance(losses, ModuleFunction):
            losses.require_own(leaf)
        if not isinstance(leaf, nn.Parameter):
            raise ValueError(
                f"losses uses a trainable tensor of shape {tuple(leaf.shape)} that is neither an embedding nor one "
                "of loss_params: its gradient would be lost. Return it from encode as an embedding, one row for "
                "each sample, pass it in loss_params, or detach it."
            )
