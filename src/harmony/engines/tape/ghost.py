"""Gram blocks from products of rows, without the gradients themselves (the ghost identity)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from harmony.engines.tape.layout import Part
from harmony.engines.tape.plan import Piece
from harmony.engines.tape.use import Grads, Matrix


def ghost(piece: Piece, grads: Grads, part: Part, dtype: torch.dtype) -> Tensor:
    """Gram blocks (g, K, K) of a parameter: ``<A^T B_k, A^T B_l> = sum_st (A A^T)_st (B_k B_l^T)_st``.

    The rows of all uses of the parameter count as one long list: s and t run over all of them.

    References:
        Goodfellow, Efficient per-example gradient computations, 2015 (arXiv:1510.01799); Li et al., Large language
        models can be strong differentially private learners, 2022 (arXiv:2110.05679), section 4.
    """
    uses = [(use, outputs[0]) for target in piece.targets for use, outputs in target.uses if isinstance(use, Matrix)]
    lefts = [use.left(part) if use.table else use.left(part).to(dtype) for use, _ in uses]
    rights = [[use.right(g[o], part).to(dtype) if o in g else None for g in grads] for use, o in uses]
    gram = torch.zeros(part.groups, len(grads), len(grads), dtype=dtype, device=lefts[0].device)
    for s, left_s in enumerate(lefts):
        for t, left_t in enumerate(lefts):
            pairs = _pairs(rights[s], rights[t])
            if not pairs:
                continue
            same_row = uses[s][0].table
            affinity = left_s.unsqueeze(-1) == left_t.unsqueeze(-2) if same_row else left_s @ left_t.mT
            flat = affinity.reshape(part.groups, 1, -1).to(dtype)
            for k, l, right_k, right_l in pairs:
                gram[:, k, l] += (flat @ (right_k @ right_l.mT).reshape(part.groups, -1, 1)).flatten()
    return gram.triu() + gram.triu(1).mT


def _pairs(first: Sequence[Tensor | None], second: Sequence[Tensor | None]) -> list[tuple[int, int, Tensor, Tensor]]:
    """The pairs of losses k <= l that both have rows."""
    return [
        (k, l, a, b)
        for k, a in enumerate(first)
        for l, b in enumerate(second)
        if k <= l and a is not None and b is not None
    ]
