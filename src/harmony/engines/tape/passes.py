"""The backward passes of all losses through a graph, one piece of it after the other."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harmony.engines.forward import pull_edges
from harmony.engines.run import Weigh
from harmony.engines.tape.graph import Graph, Output
from harmony.engines.tape.param_use import Grads
from harmony.engines.tape.per_sample import PerSampleGradients
from harmony.engines.tape.pieces import Piece
from harmony.engines.tape.recomputed import reading

Arrivals = Iterator[tuple[Piece, Graph, Grads]]
"""For each piece what its parameters need: the graph, with what was read of its ops, and the gradients of outputs."""

Verification = tuple[dict[Output, Tensor], Callable[[Mapping[Output, Tensor]], None]]
"""A cotangent, and what looks at the gradients that arrive from it."""


def passes(graph: Graph, pieces: Sequence[Piece], cotangents: Grads, verification: Verification | None) -> Arrivals:
    """Send the cotangents of all losses through one piece after the other, and forget a piece before the next.

    Args:
        graph: The graph.
        pieces: Its pieces, from the outputs inwards.
        cotangents: For each loss, gradients of the embeddings; they are taken away.
        verification: One more pass, or none.
    """
    grads: Grads = [{} for _ in cotangents]
    read: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        for arrived, waiting in zip(grads, cotangents, strict=True):
            arrived |= _pull(graph, piece, waiting)
        if verification is not None:
            waiting, verify = verification
            verify(_pull(graph, piece, waiting))
        read |= reading(graph, functools.partial(_read, reads=piece.reads))
        yield piece, graph._replace(read=read), grads
        for loss in grads:
            for output in loss.keys() - piece.later:
                del loss[output]
        for node in read.keys() - {node for node, _ in piece.later}:
            del read[node]


@dataclass(eq=False)
class PiecewiseGradients:
    """Per-sample gradients of a graph in pieces: each piece is used and forgotten, the update is an ordinary pass."""

    arrivals: Callable[[], Arrivals]
    gradients: Callable[[Piece, Graph, Grads], PerSampleGradients]  # of the parameters of one piece
    size: int  # B
    backward: Callable[[Tensor], list[Tensor]]  # weights (B, L, K) -> the update

    def gram(self, group_size: int) -> Tensor:
        """Gram blocks (groups, L, K, K)."""
        return self._sum(lambda gradients: gradients.gram(group_size))

    def products(self, direction: Sequence[Tensor], group_size: int) -> Tensor:
        """Inner products (groups, L, K) with one gradient, given for every parameter."""
        return self._sum(lambda gradients: gradients.products(direction, group_size))

    @torch.no_grad()
    def combine(self, weights: Tensor) -> list[Tensor]:
        """The update by weights (B, L, K)."""
        return self.backward(weights)

    def fused(self, group_size: int, weigh: Weigh) -> tuple[Tensor, list[Tensor]]:
        """Gram blocks, and the update by the weights made of them."""
        gram = self.gram(group_size)
        weights = weigh(gram, range(len(gram))).repeat_interleave(group_size, 0)[: self.size]
        return gram, self.combine(weights)

    def _sum(self, of_piece: Callable[[PerSampleGradients], Tensor]) -> Tensor:
        return functools.reduce(torch.add, (of_piece(self.gradients(*arrived)) for arrived in self.arrivals()))


def _read(graph: Graph, reads: Iterable[tuple[int, Iterable[str]]]) -> dict[int, dict[str, Any]]:
    return {node: graph.saved(node, names) for node, names in reads}


def _pull(graph: Graph, piece: Piece, waiting: dict[Output, Tensor]) -> dict[Output, Tensor]:
    """Pull what waits at a piece through it: gradients of the outputs that are needed; what leaves it waits."""
    roots = [output for output in waiting if output[0] in piece.nodes]
    inputs = [*piece.needed, *piece.leaving]
    sent = [waiting.pop(root) for root in roots]
    pulled = pull_edges([graph.edge(root) for root in roots], sent, [graph.edge(output) for output in inputs])
    grads = {output: grad for output, grad in zip(inputs, pulled, strict=True) if grad is not None}
    for output in piece.leaving & grads.keys():
        grad = grads.pop(output)
        waiting[output] = waiting[output] + grad if output in waiting else grad
    return grads
