"""Gram blocks from products of rows, without the gradients themselves (the ghost identity)."""

import torch
from torch import Tensor

from harmony.engines.tape.graph import Graph, Output
from harmony.engines.tape.matmul import product
from harmony.engines.tape.param_use import Grads, MatmulUse
from harmony.engines.tape.plan import ParamBlock
from harmony.engines.tape.sample_block import SampleBlock


def add_ghost(gram: Tensor, params: ParamBlock, graph: Graph, grads: Grads, block: SampleBlock) -> None:
    """Add a parameter's Gram blocks to (g, K, K): ``<A^T B_k, A^T B_l> = sum_st (A A^T)_st (B_k B_l^T)_st``.

    The rows of all uses of the parameter count as one long list: s and t run over all of them.

    References:
        Goodfellow, Efficient per-example gradient computations, 2015 (arXiv:1510.01799); Li et al., Large language
        models can be strong differentially private learners, 2022 (arXiv:2110.05679), section 4.
    """
    factors = _factors(params, graph, grads, block)
    for n, (left_s, rights_s) in enumerate(factors):
        for left_t, rights_t in factors[n:]:
            same, is_table = left_s is left_t, not left_s.is_floating_point()
            if is_table:
                affinity = (left_s[:, :, None] == left_t[:, None]).to(gram.dtype)
            else:
                affinity = product(left_s, left_t.mT, gram.dtype)
            flat = affinity.view(block.groups, 1, -1)
            for k, right_s in rights_s.items():
                for l, right_t in rights_t.items():
                    if same and k > l:
                        continue
                    column = product(right_s, right_t.mT, gram.dtype).view(block.groups, -1, 1)
                    # The pair (t, s) gives the transpose of what (s, t) gives.
                    for p, q in [(k, l)] if same and k == l else [(k, l), (l, k)]:
                        gram[:, p : p + 1, q : q + 1].baddbmm_(flat, column)


def _factors(
    params: ParamBlock, graph: Graph, grads: Grads, block: SampleBlock
) -> list[tuple[Tensor, dict[int, Tensor]]]:
    """Left factors, each with the right ones by number of the loss; uses that the same losses reach are one."""
    together: dict[tuple[int, ...], list[tuple[MatmulUse, Output]]] = {}
    for tensor in params.tensors:
        for use, (output, *_) in tensor.uses:
            assert isinstance(use, MatmulUse)
            losses = tuple(k for k, loss in enumerate(grads) if output in loss)
            together.setdefault(losses, []).append((use, output))
    factors = []
    for losses, uses in together.items():
        read = [(use, o, graph.saved(o[0], use.reads)) for use, o in uses]
        left = _rows([use.left(saved, block) for use, _, saved in read])
        rights = {k: _rows([use.right(saved, grads[k][o], block) for use, o, saved in read]) for k in losses}
        factors.append((left, rights))
    return factors


def _rows(factors: list[Tensor]) -> Tensor:
    return factors[0] if len(factors) == 1 else torch.cat(factors, 1)
