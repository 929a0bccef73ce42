"""One batch, encoded and judged by the losses: its Gram blocks, and the update by any weights."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from harmony.definition import sum_groups
from harmony.distributed.batch_split import split_batch
from harmony.engines.chunked import Combine, EncodedBatch
from harmony.engines.precision import accumulating, entries, inner_products
from harmony.engines.run import Cotangent, Measurement, mix, narrow, narrow_all, pull_labelled, pull_mixed
from harmony.keywords import Options
from harmony.loss_stage import ROWS_AT_ONCE, LossStage
from harmony.parameters import flatten_call, require_floating, resolve_shared, select_features
from harmony.reference_gradient import given_gradient, squared_norms

PyTree = Any
Blocks = Tensor | Mapping[str, Tensor]
"""One tensor, or one for each label of parameters."""


class Evaluation:
    """A batch that was encoded, and the losses on its embeddings.

    Attributes:
        values: {name: mean loss}, detached.
        terms: Loss terms (B, K), detached.
        embeddings: The tree of embeddings, detached.
    """

    def __init__(
        self, encode: Any, losses: Any, params: PyTree, batch: PyTree, loss_params: PyTree | None, options: Options
    ) -> None:
        """Encode this process's samples, and evaluate the losses of the whole batch."""
        self.options = options
        self._params = params
        self._loss_params = loss_params
        if loss_params is not None:
            require_floating("loss_params", loss_params)
        call = flatten_call(
            encode,
            params,
            batch,
            wrt=options.wrt,
            labels=options.labels,
            group_size=options.group_size,
            process_group=options.process_group,
        )
        self.split = split_batch(call.size, options.process_group)
        # Loss-wise and anchor, the update is no combination of the gradients that the Gram is made of.
        engine = options.engine if options.attribution == "activation" else replace(options.engine, update="backward")
        self._given = None
        if options.products_with is not None and not isinstance(options.products_with, str):
            self._given = given_gradient(options.products_with, call, options.process_group)
        self._encoded = EncodedBatch(call, engine, per_sample=options.per_sample)
        self._call = call
        self._stage = LossStage(losses, loss_params, self._encoded, self.split, options.loss_scale)
        self._groups = self.split.groups(options.group_size)
        self._members = self.split.members(options.group_size, self._stage.device)
        self._per_loss = self._stage.activation()  # of the whole batch, on every process
        if options.space == "parameters":
            resolve_shared(call, self._encoded, self.losses, self._per_loss, self.split)
        else:
            self._selected = select_features(self._encoded, self._per_loss, self.losses, options.feature_leaves)
        self._local = narrow_all(self._per_loss, self.split.own)  # of the samples that this process encoded
        self._combine: Combine | None = None
        terms = [term.detach() for term in self._stage.terms.values()]
        self.values = dict(zip(self.losses, [term.mean() for term in terms], strict=True))
        self.terms = torch.stack(terms, 1)
        self.embeddings = pytree.tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, self._stage.embeddings)

    @property
    def losses(self) -> list[str]:
        """Names of the K losses."""
        return list(self._stage.terms)

    @property
    def labels(self) -> list[str]:
        """Names of the L Grams; none where there is but one."""
        return self._call.labels

    def measure(self) -> Measurement:
        """Gram blocks (groups, L, K, K), and products (groups, L, K), of the whole batch, on every process."""
        options = self.options
        if options.space == "features":
            measured = self._gathered(self._measure_features())
        elif options.attribution == "loss":
            measured = self._encoded.gram_of_rows(self._local_rows, self._groups.size, self.split.sum, self._direction)
        elif options.attribution == "anchor":
            sent = self._stage.anchor(self.split.own, options.engine.chunk_size)
            measured = self._gathered(self._encoded.gram(sent, self._direction)[0])
        else:
            measured, self._combine = self._encoded.gram(self._local, self._direction)
            measured = self._gathered(measured)
        return self._unscaled(measured)

    def reference_extras(self, products: Tensor | None) -> dict[str, Any]:
        """What a transform may know of products (g, L, K): these, and the squared norm of the gradient behind them."""
        if products is None:
            return {}
        kind = "batch" if isinstance(self.options.products_with, str) else "reference"
        square = self._direction_square
        named = dict(zip(self.labels, square, strict=True)) if self.labels else square[0]
        return {f"{kind}_products": self.named(products), f"{kind}_square": named}

    def pullback(self, weights: Blocks) -> Any:
        """The update by weights (groups, K), or {label: (groups, K)}: see [gram_vjp][harmony.gram_vjp]."""
        rows = self.stack(weights)[self._members]
        if self.options.attribution != "activation":
            grads = pull_labelled(self._pull_terms, rows, self._call.label)
        elif self._combine is None:
            grads = pull_mixed(self._encoded.pull, self._local, rows[self.split.own], self._call.label)
        else:
            grads = self._combine(rows[self.split.own])
        return self._update(grads, rows)

    def fused(self, weigh: Callable[[Measurement, slice], Tensor]) -> tuple[Measurement, Tensor, Any]:
        """Measurement, weights and update, block by block; for activation, over parameters.

        Args:
            weigh: Measurement of some groups, and their samples in the batch -> weights (g, L, K).

        Returns:
            Measurement of all groups, weights (groups, L, K), and the update.
        """
        parts: dict[int, Tensor] = {}

        def weigh_block(measured: Measurement, groups: range) -> Tensor:
            m = self.options.group_size
            first = self.split.own.start
            samples = slice(first + groups.start * m, min(first + groups.stop * m, self.split.own.stop))
            parts[groups.start] = weigh(self._unscaled(measured), samples)
            return parts[groups.start]

        measured, grads = self._encoded.fused(self._local, weigh_block, self._direction)
        weights = self._groups.gather(torch.cat([parts[start] for start in sorted(parts)]))
        return self._unscaled(self._gathered(measured)), weights, self._update(grads, weights[self._members])

    def named(self, blocks: Tensor | None) -> Any:
        """Blocks (groups, L, ...) by the name of their label; without labels, the only one. None stays None."""
        if blocks is None:
            return None
        return dict(zip(self.labels, blocks.unbind(1), strict=True)) if self.labels else blocks[:, 0]

    def stack(self, weights: Blocks, groups: int | None = None) -> Tensor:
        """Weights of every label (groups, L, K); one tensor serves all labels. The inverse of ``named``."""
        shape = (self._groups.size if groups is None else groups, len(self.losses))
        if isinstance(weights, Mapping) and weights.keys() != set(self.labels):
            raise ValueError(f"weights are of the labels {sorted(weights)}, the Gram blocks of {sorted(self.labels)}.")
        rows = [weights[label] for label in self.labels] if isinstance(weights, Mapping) else [weights]
        for row in rows:
            if row.shape != shape:
                raise ValueError(
                    f"pullback expects weights of shape {shape}, one per group of samples and loss; "
                    f"got {tuple(row.shape)}."
                )
        return torch.stack([row.detach() for row in rows], 1).expand(-1, len(self.labels) or 1, -1)

    def _update(self, grads: list[Tensor], rows: Tensor) -> Any:
        """The gradient of the whole batch in the tree of the parameters, and that of the losses' parameters."""
        grads = self.split.sum_like(grads, pytree.tree_leaves(self._params))
        tree = pytree.tree_unflatten(grads, self._call.params_spec)
        if self._loss_params is None:
            return tree
        loss_grads = self.split.agree(self._stage.loss_gradient(rows.mean(1)))  # the same everywhere to the last bit
        return tree, pytree.tree_unflatten(loss_grads, self._stage.params_spec)

    def _pull_terms(self, weights: Tensor) -> list[Tensor]:
        """The update by weights (B, K) of the loss terms."""
        return self._encoded.pull(narrow(self._stage.weighted(weights), self.split.own))

    def _rows(self, groups: range) -> list[Cotangent]:
        return self._stage.rows(self._members, groups)

    def _local_rows(self, groups: range) -> list[Cotangent]:
        return narrow_all(self._rows(groups), (slice(None), self.split.own))

    @functools.cached_property
    def _direction(self) -> list[Tensor] | None:
        """What products are taken with, without the scale of the losses: a tensor for each parameter, or leaf."""
        if self.options.products_with is None or self._given is not None:
            return self._given
        if self.options.space == "features":
            leaves = zip(*self._features(self._per_loss), strict=True)
            total = [torch.stack([entries(leaf) for leaf in losses]).sum((0, 1)) for losses in leaves]
        else:
            ones = self.terms.new_ones(self._call.size, len(self.losses))
            total = self.split.sum(self._encoded.pull(mix(self._local, ones)))
        return [self._stage.unscaled(accumulating(g)) for g in total]

    @functools.cached_property
    def _direction_square(self) -> Tensor:
        """Squared norms (L,) of the direction over the parameters of each label."""
        direction = self._direction
        assert direction is not None
        return squared_norms(direction, [0] * len(direction) if self.options.space == "features" else self._call.label)

    def _gathered(self, measured: Measurement) -> Measurement:
        """The measurement of the whole batch."""
        products = None if measured.products is None else self._groups.gather(measured.products)
        return Measurement(self._groups.gather(measured.gram), products)

    def _unscaled(self, measured: Measurement) -> Measurement:
        """The measurement without the scale of the losses, of which a square stands in the Gram."""
        unscaled = self._stage.unscaled
        products = None if measured.products is None else unscaled(measured.products.detach())
        return Measurement(unscaled(unscaled(measured.gram.detach())), products)

    def _measure_features(self) -> Measurement:
        """Measurement of this process's cotangents."""
        if self._direction is None:
            return Measurement(self._feature_gram()[:, None])
        rows = [
            torch.stack([(entries(x) * v).sum(1) for x, v in zip(loss, self._direction, strict=True)]).sum(0)
            for loss in self._features(self._local)
        ]
        products = sum_groups(torch.stack(rows, 1), self.options.group_size)
        return Measurement(self._feature_gram()[:, None], products[:, None])

    def _feature_gram(self) -> Tensor:
        """Gram blocks (groups, K, K) of this process's cotangents."""
        if self.options.attribution == "loss":
            step, own = self.options.engine.chunk_size or ROWS_AT_ONCE, self._groups.own
            blocks = [range(start, min(start + step, own.stop)) for start in range(own.start, own.stop, step)]
            return torch.cat([inner_products(self._features(self._rows(block))) for block in blocks])
        cotangents: Sequence[Cotangent] = self._local
        if self.options.attribution == "anchor":
            cotangents = self._stage.anchor(self.split.own, self.options.engine.chunk_size)
        return sum_groups(inner_products(self._features(cotangents)), self.options.group_size)

    def _features(self, cotangents: Sequence[Cotangent]) -> list[list[Tensor]]:
        """K lists of the leaves in the Gram; a leaf that a loss does not reach counts as zero."""
        columns = [leaf for leaf, s in zip(zip(*cotangents, strict=True), self._selected, strict=True) if s]
        templates = [next(c for c in leaf if c is not None) for leaf in columns]
        return [
            [torch.zeros_like(t) if c is None else c for c, t in zip(loss, templates, strict=True)]
            for loss in zip(*columns, strict=True)
        ]
