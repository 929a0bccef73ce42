"""Gram blocks from products of rows, without the gradients themselves (the ghost identity)."""

import torch
from torch import Tensor

from harmony.engines.tape.graph import Output
from harmony.engines.tape.param_use import Grads, MatmulUse
from harmony.engines.tape.plan import ParamBlock
from harmony.engines.tape.sample_block import SampleBlock


def ghost(params: ParamBlock, grads: Grads, block: SampleBlock, dtype: torch.dtype) -> Tensor:
    """Gram blocks (g, K, K) of a parameter: ``<A^T B_k, A^T B_l> = sum_st (A A^T)_st (B_k B_l^T)_st``.

    The rows of all uses of the parameter count as one long list: s and t run over all of them.

    References:
        Goodfellow, Efficient per-example gradient computations, 2015 (arXiv:1510.01799); Li et al., Large language
        models can be strong differentially private learners, 2022 (arXiv:2110.05679), section 4.
    """
    factors = _factors(params, grads, block, dtype)
    gram = torch.zeros(block.groups, len(grads), len(grads), dtype=dtype, device=factors[0][0].device)
    for left_s, rights_s in factors:
        for left_t, rights_t in factors:
            pairs = [(k, l) for k in rights_s for l in rights_t if k <= l]
            if not pairs:
                continue
            is_table = left_s.ndim == 3  # of indices
            affinity = left_s.unsqueeze(-1) == left_t.unsqueeze(-2) if is_table else left_s @ left_t.mT
            flat = affinity.reshape(block.groups, 1, -1).to(dtype)
            for k, l in pairs:
                gram[:, k, l] += (flat @ (rights_s[k] @ rights_t[l].mT).reshape(block.groups, -1, 1)).flatten()
    return gram.triu() + gram.triu(1).mT


def _factors(
    params: ParamBlock, grads: Grads, block: SampleBlock, dtype: torch.dtype
) -> list[tuple[Tensor, dict[int, Tensor]]]:
    """Left factors, each with the right ones by number of the loss; uses that the same losses reach are one."""
    together: dict[tuple[int, ...], list[tuple[MatmulUse, Output]]] = {}
    for tensor in params.tensors:
        for use, outputs in tensor.uses:
            assert isinstance(use, MatmulUse)
            losses = tuple(k for k, loss in enumerate(grads) if outputs[0] in loss)
            together.setdefault(losses, []).append((use, outputs[0]))
    factors = []
    for losses, uses in together.items():
        left = _rows([use.left(block) for use, _ in uses])
        left = left if uses[0][0].table else left.to(dtype)
        factors.append((left, {k: _rows([use.right(grads[k][o], block).to(dtype) for use, o in uses]) for k in losses}))
    return factors


def _rows(factors: list[Tensor]) -> Tensor:
    return factors[0] if len(factors) == 1 else torch.cat(factors, 2)
