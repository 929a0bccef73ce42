"""Loss scaling: gradients are multiplied, and nothing that a harmonizer sees is."""

import pytest
import torch
from torch import nn

import harmony
from tests import zoo
from tests.harmony.options import keywords

SCALE = torch.tensor(2.0**16)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    "options",
    [
        *({"method": method} for method in ("tape", "vmap", "loop")),
        *({"method": "tape", "update": update} for update in ("kept", "tape", "backward")),
        {"chunk_size": 2},
        {"chunk_size": 2, "group_size": 3},
        {"attribution": "loss"},
        {"attribution": "anchor"},
        {"space": "features"},
        {"space": "features", "attribution": "loss"},
        {"products_with": "batch"},
        {"space": "features", "products_with": "batch"},
    ],
    ids=str,
)
def test_the_gram_is_unscaled_and_gradients_are_scaled(options):
    case = zoo.shared_backbone()
    result = harmony.gram_vjp(*case, **keywords(**options))
    scaled = harmony.gram_vjp(*case, loss_scale=SCALE, **keywords(**options))
    for name in ("values", "terms", "gram", "products"):
        torch.testing.assert_close(getattr(scaled, name), getattr(result, name), rtol=1e-10, atol=0)
    weights = torch.rand(result.gram.shape[:2], dtype=result.gram.dtype)
    expected = {name: grad * SCALE for name, grad in result.pullback(weights).items()}
    torch.testing.assert_close(scaled.pullback(weights), expected, rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("samplewise", [True, False])
def test_a_scaled_step_has_the_weights_of_a_step_and_scaled_gradients_of_heads_too(samplewise):
    encoder, heads, x = nn.Linear(5, 4).double(), _Heads().double(), zoo.randn(6, 5)
    middle = float(harmony.backward(encoder, x, heads, harmony.chain())[0].agreement.median())
    curriculum = harmony.curriculum.threshold(middle) if samplewise else harmony.curriculum.quantile(0.5)
    harmonizer = harmony.chain(curriculum, harmony.realign.pcgrad)
    encoder.zero_grad(), heads.zero_grad()
    found = []
    for options in ({}, {"loss_scale": SCALE}):
        info, _ = harmony.backward(encoder, x, heads, harmonizer, **keywords(**options))
        found.append((info, [p.grad.clone() for m in (encoder, heads) for p in m.parameters()]))
        encoder.zero_grad(), heads.zero_grad()
    (info, grads), (scaled, scaled_grads) = found
    torch.testing.assert_close(scaled._asdict(), info._asdict(), rtol=1e-10, atol=0)
    torch.testing.assert_close(scaled_grads, [g * SCALE for g in grads], rtol=1e-10, atol=1e-8)
    assert 0 < int(info.kept) < 6


def test_gradients_that_vanish_in_float16_are_there_under_a_scale():
    encoder, x = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2)), torch.randn(4, 8)
    small = lambda f: {"a": f.float()[:, 0] * 1e-7, "b": f.float().sum(1) * 1e-7}  # noqa: E731

    def half(module, x):
        with torch.autocast("cpu", dtype=torch.float16):
            return module(x)

    grams = [
        harmony.backward(encoder, x, small, harmony.realign.pcgrad, **keywords(**options))[0].gram
        for options in ({}, {"forward": half}, {"forward": half, "loss_scale": SCALE})
    ]
    exact, lost, scaled = grams
    assert (lost - exact).abs().max() > 0.2 * exact.abs().max()
    torch.testing.assert_close(scaled, exact, rtol=0.02, atol=0.01 * float(exact.abs().max()))


def test_the_step_of_a_grad_scaler_is_the_step_without():
    moved = []
    for scaler in (None, torch.amp.GradScaler("cpu")):
        torch.manual_seed(1)
        encoder, x = nn.Linear(5, 3), torch.randn(6, 5)
        optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
        scale = None if scaler is None else scaler.scale(torch.ones(()))
        harmony.backward(encoder, x, zoo.supervised, harmony.realign.pcgrad, loss_scale=scale)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        moved.append(encoder.weight.detach())
    torch.testing.assert_close(*moved)


class _Heads(nn.Module):
    """Two losses with parameters of their own."""

    def __init__(self):
        super().__init__()
        self.heads = nn.Linear(4, 2)

    def forward(self, f):
        first, second = self.heads(f.tanh()).unbind(1)
        return {"first": (first - 1) ** 2, "second": (second + first) ** 2}
