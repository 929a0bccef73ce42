"""Per-sample gradients of parameters, written side by side into buffers."""

from collections.abc import Sequence

from torch import Tensor

from harmony.engines.tape.graph import Graph
from harmony.engines.tape.matmul import multiply
from harmony.engines.tape.param_tensor import ParamTensor
from harmony.engines.tape.param_use import Grads, MatmulUse
from harmony.engines.tape.plan import ParamBlock
from harmony.engines.tape.sample_block import SampleBlock, split


def materialize(
    params: ParamBlock, graph: Graph, grads: Grads, leaves: Sequence[Tensor], block: SampleBlock, out: Tensor
) -> None:
    """Write the gradients of parameters under each loss into a buffer (K, g, width), for some groups of samples."""
    places = {(p, k): out[k, :, cols] for p, cols in params.columns.items() for k in range(len(grads))}
    empty = set(places)

    def is_first(p: int, k: int) -> bool:
        is_empty = (p, k) in empty
        empty.discard((p, k))
        return is_empty

    for tensor in params.tensors:
        if tensor.is_product:
            (p,) = tensor.params
            for use, (output,) in tensor.uses:
                assert isinstance(use, MatmulUse)
                reached = {k: loss[output] for k, loss in enumerate(grads) if output in loss}
                if not reached:
                    continue
                saved = graph.saved(output[0], use.reads)
                left = use.left(saved, block)
                for k, grad in reached.items():
                    right = use.right(saved, grad, block)
                    a, b = (right.mT, left) if use.out_first != tensor.transposed else (left.mT, right)
                    _multiply_into(places[p, k], block.groups, a, b, add=not is_first(p, k))
        else:
            for k, total in _sums(tensor, graph, grads, block).items():
                for p, grad in zip(tensor.params, tensor.pull(graph, total, leaves), strict=True):
                    _add(places[p, k], grad.reshape(len(grad), -1), is_first(p, k))
    for unreached in empty:
        places[unreached].zero_()


def _multiply_into(place: Tensor, groups: int, a: Tensor, b: Tensor, add: bool) -> None:
    """Write products (g n, i, o) into (g, entries), or add them to what stands there."""
    n, i, o = len(a) // groups, a.shape[1], b.shape[2]
    if n == 1:
        multiply(split(place, 1, (i, o)), a, b, add)
    elif place.is_contiguous():
        multiply(place.view(groups * n, i, o), a, b, add)
    else:  # side by side among small ones
        _add(place, (a.to(place.dtype) @ b.to(place.dtype)).reshape(groups, -1), not add)


def _sums(tensor: ParamTensor, graph: Graph, grads: Grads, block: SampleBlock) -> dict[int, Tensor]:
    """Gradients (g, *shape) of a common tensor under each loss that reaches it, over all its uses."""
    sums: dict[int, Tensor] = {}
    for use, outputs in tensor.uses:
        sent = {k: [loss.get(o) for o in outputs] for k, loss in enumerate(grads)}
        reached = {k: loss for k, loss in sent.items() if any(grad is not None for grad in loss)}
        for k, grad in use.gradients(graph, outputs[0][0], reached, block).items() if reached else ():
            grad = grad.real if grad.is_complex() and not tensor.dtype.is_complex else grad
            sums[k] = sums[k] + grad if k in sums else grad
    return sums


def _add(place: Tensor, grad: Tensor, is_first: bool) -> None:
    if is_first:
        place.copy_(grad)
    else:
        place.add_(grad)
