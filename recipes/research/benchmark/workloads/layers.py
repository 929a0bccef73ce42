"""Layers that several workloads are made of."""

import torch
from torch import Tensor, nn


def head(width: int, output: int) -> nn.Sequential:
    """A two-layer head of a losses stage."""
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, output))


class Adapted(nn.Module):
    """A frozen matrix with a trained low-rank one beside it.

    Both factors are random, as in the middle of a training: a zero factor would have no gradient to get wrong.

    References:
        Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021 (arXiv:2106.09685).
    """

    def __init__(self, matrix: nn.Linear, rank: int) -> None:
        super().__init__()
        self.matrix = matrix.requires_grad_(False)
        self.down = nn.Linear(matrix.in_features, rank, bias=False)
        self.up = nn.Linear(rank, matrix.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.matrix(x) + self.up(self.down(x))


class Experts(nn.Module):
    """A mixture of MLPs: the router sends each token to one of them, and weighs what comes back.

    References:
        Fedus et al., Switch Transformers, 2021 (arXiv:2101.03961).
    """

    def __init__(self, width: int, number: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, number)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)) for _ in range(number)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (b, n, d) -> (b, n, d)."""
        tokens = x.flatten(0, 1)
        share, choice = self.router(tokens).softmax(-1).max(-1)
        output = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            rows = (choice == number).nonzero().squeeze(1)
            output = output.index_add(0, rows, expert(tokens[rows]))
        return (output * share[:, None]).view_as(x)
