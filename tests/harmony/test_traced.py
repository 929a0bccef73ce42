"""A step on the tape, traced into one graph of ATen ops: the way to export it, or to compile it as a whole."""

import torch
from torch import nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

import harmony


def test_a_traced_step_holds_on_another_batch():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 3))
    params = {name: p.detach() for name, p in encoder.named_parameters()}
    harmonizer = harmony.chain(harmony.realign.pcgrad)
    harmonized = harmony.harmonized_grad(
        lambda params, x: functional_call(encoder, params, (x,)).mean(1),
        lambda f: {"norm": f.pow(2).sum(1), "first": (f[:, 0] - 1) ** 2},
        harmonizer,
        engine=harmony.Engine("tape", verify="never"),  # verification draws samples, and looks at numbers
    )

    def step(params, x):
        grads, _, info = harmonized(params, x, harmonizer.init())
        return {**grads, "gram": info.gram}

    traced = make_fx(step)(params, torch.randn(5, 4, 6))
    other = torch.randn(5, 4, 6)
    torch.testing.assert_close(traced(params, other), step(params, other))
    moved = {name: p + 0.1 for name, p in params.items()}
    torch.testing.assert_close(traced(moved, other), step(moved, other))
