"""Inner products of per-sample gradients with one gradient, without the gradients of the samples."""

from torch import Tensor

from harmony.engines.tape.graph import Graph
from harmony.engines.tape.param_tensor import ParamTensor
from harmony.engines.tape.param_use import Grads, MatmulUse
from harmony.engines.tape.plan import ParamBlock
from harmony.engines.tape.sample_block import SampleBlock, split


def takes_products(params: ParamBlock) -> bool:
    """Whether ``add_products`` serves the parameters: they stand as they are in products of rows with several features.

    A bias is a product with ones, of one feature: its gradients are smaller than the rows are.
    """
    return all(
        isinstance(use, MatmulUse) and use.sizes[2] > 1 and (tensor.flat or tensor.transposed)
        for tensor in params.tensors
        for use, _ in tensor.uses
    )


def passing(params: ParamBlock) -> int:
    """Entries that one sample takes on the way: rows along the direction, under one loss at a time."""
    uses = [use for tensor in params.tensors for use, _ in tensor.uses]
    return max(use.sizes[0] * use.sizes[1] * use.sizes[3] for use in uses if isinstance(use, MatmulUse))


def add_products(
    products: Tensor, params: ParamBlock, direction: Tensor, graph: Graph, grads: Grads, block: SampleBlock
) -> None:
    """Add inner products with a direction V (width,) to (g, K): ``<A^T B_k, V> = sum_s <(A V)_s, (B_k)_s>``.

    One product of rows serves all losses: about the work of the layer's forward pass.
    """
    for tensor in params.tensors:
        [p] = tensor.params
        for use, [output] in tensor.uses:
            assert isinstance(use, MatmulUse)
            reached = {k: loss[output] for k, loss in enumerate(grads) if output in loss}
            if not reached:
                continue
            saved = graph.saved(output[0], use.reads)
            along = _along(use, tensor, direction[params.columns[p]], use.left(saved, block))
            for k, grad in reached.items():
                right = use.right(saved, grad, block).to(along.dtype)
                rows = right.reshape(block.groups, -1, 1)
                products[:, k : k + 1] += (along.reshape(block.groups, 1, -1) @ rows)[:, 0]


def _along(use: MatmulUse, tensor: ParamTensor, direction: Tensor, left: Tensor) -> Tensor:
    """Rows (g n t, o), or (g, n, t, o), that a direction makes of left factors (g n, t, i)."""
    n, _, i, o = use.sizes
    out_first = use.out_first != tensor.transposed
    matrices = direction.view(n, o, i).mT if out_first else direction.view(n, i, o)
    if use.table:
        return matrices[0][left]
    left = left.to(direction.dtype)
    return left.flatten(0, 1) @ matrices[0] if n == 1 else split(left, 0, (len(left) // n, n)) @ matrices
