"""Brute-force per-sample gradients by plain autograd in float64, written from the definitions and nothing else."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Tree = Any


def per_sample_gradients(
    encode: Callable[..., Tree],
    losses: Callable[..., dict[str, Tensor]],
    params: dict[str, Tensor],
    batch: Tree,
    attribution: str,
) -> dict[str, Tensor]:
    """Gradients {name: (B, K, *shape)} of every sample under every loss, one autograd call for each of them."""
    size = pytree.tree_leaves(batch)[0].shape[0]
    names = list(params)

    def one(tree: Tree, b: int) -> Tree:
        return pytree.tree_map(lambda x: x[b : b + 1], tree)

    def embeddings(own: int | None, through: dict[str, Tensor]) -> Tree:
        """Embeddings of the batch: through ``through`` for one sample (or all), constant elsewhere."""
        constant = {n: p.detach() for n, p in params.items()}
        rows = [encode(through if own is None or own == b else constant, one(batch, b)) for b in range(size)]
        return pytree.tree_map(lambda *leaves: torch.cat(leaves), *rows)

    names_of_losses = list(losses(embeddings(None, params)))
    grads: dict[str, list[list[Tensor]]] = {n: [] for n in names}
    for b in range(size):
        for n in names:
            grads[n].append([])
        for k in names_of_losses:
            fresh = {n: p.detach().clone().requires_grad_() for n, p in params.items()}
            terms = losses(embeddings(None if attribution == "loss" else b, fresh))[k]
            scalar = terms.mean() if attribution == "activation" else terms[b] / size
            found = torch.autograd.grad(scalar, list(fresh.values()), allow_unused=True)
            for n, g in zip(names, found, strict=True):
                grads[n][b].append(torch.zeros_like(params[n]) if g is None else g)
    return {n: torch.stack([torch.stack(row) for row in rows]) for n, rows in grads.items()}


def gram_blocks(grads: dict[str, Tensor], group_size: int = 1) -> Tensor:
    """Gram blocks (groups, K, K) of gradients {name: (B, K, *shape)}, summed over groups of consecutive samples."""
    flat = torch.cat([g.reshape(*g.shape[:2], -1) for g in grads.values()], dim=2)
    groups = torch.stack([part.sum(0) for part in flat.split(group_size)])
    return groups @ groups.mT


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Largest deviation, relative to the largest expected entry."""
    return float((got - expected).abs().max() / expected.abs().max())


def error_per_block(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest deviation of any parameter's Gram blocks (B, K, K), relative to the largest entry of the same block.

    Blocks that are zero but for rounding are measured against the parameter's largest entry, and parameters whose
    blocks all are against the largest of all: squares of what ``error_per_parameter`` takes for rounding.
    """
    largest = max(float(e.abs().max()) for e in expected.values())
    worst = 0.0
    for name, e in expected.items():
        of_param = float(e.abs().max())
        of_param = of_param if of_param > 1e-18 * largest else largest
        own = e.double().abs().amax((1, 2))
        scale = torch.where(own > 1e-18 * of_param, own, of_param)
        error = ((got[name].double() - e.double()).abs().amax((1, 2)) / scale).max()
        worst = max(worst, float(error.nan_to_num(torch.inf, torch.inf)))
    return worst


def error_per_parameter(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest deviation of any parameter's entries, relative to the largest of its own.

    A gradient that is zero but for rounding (that of a bias before a normalisation, say) is measured against the
    largest of all: it has no scale of its own.
    """
    scales = {name: float(e.abs().max()) for name, e in expected.items()}
    largest = max(scales.values())
    errors = {name: float((got[name].double() - e.double()).abs().max()) for name, e in expected.items()}
    relative = [error / (scales[n] if scales[n] > 1e-9 * largest else largest) for n, error in errors.items()]
    return max(error if error == error else float("inf") for error in relative)
