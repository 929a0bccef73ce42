"""Gram blocks from products of rows, without the gradients themselves (the ghost identity)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from harmony.engines.tape.graph import Output
from harmony.engines.tape.layout import SampleBlock
from harmony.engines.tape.param_use import Grads, MatmulUse
from harmony.engines.tape.plan import ParamBlock


def ghost(piece: ParamBlock, grads: Grads, part: SampleBlock, dtype: torch.dtype) -> Tensor:
    """Gram blocks (g, K, K) of a parameter: ``<A^T B_k, A^T B_l> = sum_st (A A^T)_st (B_k B_l^T)_st``.

    The rows of all uses of the parameter count as one long list: s and t run over all of them.

    References:
        Goodfellow, Efficient per-example gradient computations, 2015 (arXiv:1510.01799); Li et al., Large language
        models can be strong differentially private learners, 2022 (arXiv:2110.05679), section 4.
    """
    lefts, rights, table = _factors(piece, grads, part, dtype)
    gram = torch.zeros(part.groups, len(grads), len(grads), dtype=dtype, device=lefts[0].device)
    for s, left_s in enumerate(lefts):
        for t, left_t in enumerate(lefts):
            pairs = _pairs(rights[s], rights[t])
            if not pairs:
                continue
            affinity = left_s.unsqueeze(-1) == left_t.unsqueeze(-2) if table else left_s @ left_t.mT
            flat = affinity.reshape(part.groups, 1, -1).to(dtype)
            for k, l, right_k, right_l in pairs:
                gram[:, k, l] += (flat @ (right_k @ right_l.mT).reshape(part.groups, -1, 1)).flatten()
    return gram.triu() + gram.triu(1).mT


def _factors(
    piece: ParamBlock, grads: Grads, part: SampleBlock, dtype: torch.dtype
) -> tuple[list[Tensor], list[list[Tensor | None]], bool]:
    """Left factors, right factors by loss, whether the left are indices; uses that the same losses reach are one."""
    together: dict[tuple[bool, ...], list[tuple[MatmulUse, Output]]] = {}
    for target in piece.targets:
        for use, outputs in target.uses:
            assert isinstance(use, MatmulUse)
            together.setdefault(tuple(outputs[0] in g for g in grads), []).append((use, outputs[0]))
    lefts, rights = [], []
    for reached, uses in together.items():
        left = torch.cat([use.left(part) for use, _ in uses], 2) if len(uses) > 1 else uses[0][0].left(part)
        lefts.append(left if uses[0][0].table else left.to(dtype))
        right = [
            torch.cat([use.right(loss[o], part).to(dtype) for use, o in uses], 2) if reaches else None
            for loss, reaches in zip(grads, reached, strict=True)
        ]
        rights.append(right)
    return lefts, rights, uses[0][0].table


def _pairs(first: Sequence[Tensor | None], second: Sequence[Tensor | None]) -> list[tuple[int, int, Tensor, Tensor]]:
    """The pairs of losses k <= l that both have rows."""
    return [
        (k, l, a, b)
        for k, a in enumerate(first)
        for l, b in enumerate(second)
        if k <= l and a is not None and b is not None
    ]
