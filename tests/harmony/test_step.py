"""The composed step and the three-line change to a module's loop."""

import pytest
import torch
from torch import nn

import harmony
from tests import zoo
from tests.harmony import oracle
from tests.harmony.options import keywords


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_step_is_gram_weights_and_pullback_composed():
    case = zoo.shared_backbone()
    harmonizer = harmony.chain(harmony.curriculum.threshold(-0.2), harmony.realign.pcgrad)
    step = harmony.harmonized_grad(case.encode, case.losses, harmonizer)
    grads, _, info = step(case.params, case.batch, harmonizer.init())

    g = oracle.per_sample_gradients(*case, attribution="activation")
    gram = oracle.gram_blocks(g)
    weights = harmony.realign.pcgrad(gram) * (harmony.agreement(gram) > -0.2)[:, None]
    assert 0 < int((weights != 0).any(1).sum()) < zoo.B  # the seed shows both: some dropped, some kept
    torch.testing.assert_close(info.weights, weights)
    torch.testing.assert_close(info.agreement, harmony.agreement(gram))
    assert int(info.kept) == int((weights != 0).any(1).sum())
    for n, p in g.items():
        torch.testing.assert_close(grads[n], torch.einsum("bk,bk...->...", weights, p))


def test_everything_dropped_gives_a_zero_gradient_and_says_so():
    case = zoo.shared_backbone()
    harmonizer = harmony.chain(harmony.curriculum.threshold(1.0))
    grads, _, info = harmony.harmonized_grad(case.encode, case.losses, harmonizer)(
        case.params, case.batch, harmonizer.init()
    )
    assert int(info.kept) == 0 and all((g == 0).all() for g in grads.values())


def test_backward_fills_grad_like_an_ordinary_backward_when_nothing_is_changed():
    module, x = zoo.Pooled().double(), zoo.randn(6, 5, 8)
    frozen = module.positions.requires_grad_(False)
    sum(t.mean() for t in zoo.supervised(module(x)).values()).backward()
    expected = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    info, state = harmony.backward(module, x, zoo.supervised, harmony.chain())
    torch.testing.assert_close({n: p.grad for n, p in module.named_parameters() if p.grad is not None}, expected)
    assert frozen.grad is None and state == () and info.terms.shape == (6, 3)
    harmony.backward(module, x, zoo.supervised, harmony.chain(), state)  # adds
    for n, p in module.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, 2 * expected[n])


@pytest.mark.parametrize("pack", [lambda x: {"input": x}, lambda x: (x,), lambda x: x])
def test_backward_calls_the_module_as_the_batch_is_packed(pack):
    module = nn.Linear(3, 2)
    harmony.backward(module, pack(torch.randn(4, 3)), lambda f: {"a": f[:, 0]}, harmony.chain())
    assert module.weight.grad is not None


def test_backward_trains_heads_and_ties_and_moves_running_statistics_once():
    module = zoo.Tied().double()

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(7)

        def forward(self, f):
            return zoo.supervised(self.norm(f["logits"]) * f["scale"][:, None])

    heads = Heads().double()
    batch = {"ids": torch.randint(7, (5, 3)), "scale": zoo.randn(5)}
    forward = lambda m, b: {"logits": m(b["ids"]), "scale": b["scale"]}  # noqa: E731
    sum(t.mean() for t in heads(forward(module, batch)).values()).backward()
    expected = [p.grad.clone() for m in (module, heads) for p in m.parameters()]
    for m in (module, heads):
        m.zero_grad()
    heads.norm.reset_running_stats()
    harmony.backward(module, batch, heads, harmony.chain(), forward=forward)
    torch.testing.assert_close([p.grad for m in (module, heads) for p in m.parameters()], expected)
    assert int(heads.norm.num_batches_tracked) == 1


def test_a_plain_function_is_a_harmonizer():
    case, x = zoo.mlp(), zoo.randn(4, 4)
    wrapped, _, _ = harmony.harmonized_grad(case.encode, case.losses, harmony.chain(harmony.realign.pcgrad))(
        case.params, case.batch, ((),)
    )
    grads, state, info = harmony.harmonized_grad(case.encode, case.losses, harmony.realign.pcgrad)(
        case.params, case.batch, ((),)
    )
    torch.testing.assert_close(grads, wrapped)
    assert torch.equal(info.defined, harmony.defined(info.gram)) and state == ((),)
    harmony.backward(nn.Linear(4, 2).double(), x, lambda f: {"a": f[:, 0], "b": f[:, 1]}, harmony.realign.pcgrad)


def test_parameters_that_an_ordinary_loop_would_train_are_not_left_out_silently():
    encoder, heads, x = nn.Linear(3, 4), nn.Linear(4, 2), torch.randn(5, 3)
    split = lambda out: {"a": out[:, 0] ** 2, "b": out[:, 1] ** 2}  # noqa: E731
    for options in ({"method": "tape"}, {"method": "vmap"}, {"method": "loop"}, {"space": "features"}):
        with pytest.raises(ValueError, match=r"losses uses a trainable parameter of shape \(2,( 4)?\)"):
            harmony.backward(encoder, x, lambda f: split(heads(f)), harmony.chain(), **keywords(**options))
        with pytest.raises(ValueError, match=r"forward uses a trainable parameter of shape \(2,( 4)?\)"):
            harmony.backward(
                encoder, x, split, harmony.chain(), forward=lambda m, x: heads(m(x)), **keywords(**options)
            )
    heads.requires_grad_(False)
    harmony.backward(encoder, x, lambda f: split(heads(f)), harmony.chain())
    harmony.backward(encoder, x, split, harmony.chain(), forward=lambda m, x: heads(m(x)))


def test_options_that_belong_to_the_step_are_refused_by_name():
    with pytest.raises(TypeError, match="unexpected keyword argument 'loss_params'"):
        harmony.harmonized_grad(None, None, harmony.chain(), loss_params={})


def test_backward_needs_something_to_train():
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        harmony.backward(nn.Linear(2, 2).requires_grad_(False), torch.ones(1, 2), zoo.supervised, harmony.chain())


def test_a_harmonized_loop_learns():
    """Two regressions that share a trunk, through the whole public interface."""
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    harmonizer = harmony.chain(harmony.realign.pcgrad)
    state, x = harmonizer.init(), torch.randn(64, 4)
    target = torch.stack([x[:, 0] + x[:, 1], x[:, 1] - x[:, 2]], 1)
    first = last = None
    for _ in range(150):
        optimizer.zero_grad()
        info, state = harmony.backward(
            module, (x, target), lambda f: {k: (f[0][:, i] - f[1][:, i]) ** 2 for i, k in enumerate("ab")}, harmonizer,
            state, forward=lambda m, b: (m(b[0]), b[1]),
        )  # fmt: skip
        optimizer.step()
        last = sum(info.values.values())
        first = last if first is None else first
    assert last < 0.1 * first


@pytest.mark.parametrize("method", ["upgrad", "dualproj", "mgda", "cagrad", "nash_mtl", "fairgrad"])
def test_float32_gradients_that_sum_to_zero_give_no_huge_weights(method):
    """Probabilities sum to one, so the three gradients of a sample are dependent, and float32 rounds their Gram."""
    module = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 3))
    x = torch.randn(256, 16)
    probabilities = lambda out: {str(k): -out.softmax(1)[:, k] for k in range(3)}  # noqa: E731
    info, _ = harmony.backward(module, x, probabilities, getattr(harmony.realign, method))
    gradient = torch.cat([p.grad.flatten() for p in module.parameters()])
    assert info.weights.isfinite().all() and gradient.isfinite().all()
    if method not in ("nash_mtl", "fairgrad"):  # these divide by the norms, and have no solution here
        assert info.weights.max() < 4 and gradient.norm() < 1e-5  # every update that serves all is zero
