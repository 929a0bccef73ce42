"""Agreement with TorchJD, sample by sample: the same numbers where it is exact, at least as near where it is not.

Optional: skipped without TorchJD and its solvers (the extra ``benchmark``). Its default preference is 1 / K, ours 1.
"""

import itertools
import warnings

import pytest
import torch

from harmony import realign
from tests.harmony.realign.gradients import (
    at_most,
    combine,
    gram,
    in_general_position,
    inner,
    lengths,
    same_weights,
    unit,
)

peer = pytest.importorskip("torchjd.aggregation", reason="TorchJD comes with the extra benchmark")
solvers = pytest.importorskip("torchjd.linalg")

LOSSES = pytest.mark.parametrize("k", [2, 3, 4])


def samples(k, size=24):
    return in_general_position(k, k, decades=1.0, size=size)


def each(weighting, g):
    """Weights (B, K) of a weighting of single Gram blocks."""
    return torch.stack([weighting(block) for block in gram(g)])


def projector():
    for module in ("qpsolvers", "quadprog"):
        pytest.importorskip(module)
    return solvers.QuadprogProjector(norm_eps=0.0, reg_eps=1e-12)


@LOSSES
def test_sum_and_mean(k):
    g = samples(k)
    assert torch.equal(each(peer.SumWeighting(), g), realign.summed(gram(g)))
    torch.testing.assert_close(each(peer.MeanWeighting(), g), realign.mean(gram(g)))


@LOSSES
def test_pcgrad_in_the_order_that_the_peer_draws(k, monkeypatch):
    """For two losses there is nothing to draw. Measured: 4e-16."""
    g = samples(k)
    for order in itertools.permutations(range(k)):
        monkeypatch.setattr(torch, "randperm", lambda n, order=order: torch.tensor(order))
        same_weights(realign.pcgrad(gram(g), order=order), each(peer.PCGradWeighting(), g), g, 1e-12)


def test_pcgrad_on_average():
    """The peer's mean over its random orders comes near to ours over all."""
    g = samples(3, size=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = torch.stack([each(peer.PCGradWeighting(), g) for _ in range(400)])
    error = drawn.std(0) / len(drawn) ** 0.5
    at_most((drawn.mean(0) - realign.pcgrad(gram(g), order="mean")).abs(), 4 * error + 1e-12)


@LOSSES
def test_gradvac_over_several_steps(k, monkeypatch):
    """In our order and batches of one sample. Measured: 2e-8, our state being of single precision."""
    monkeypatch.setattr(torch, "randperm", torch.arange)
    g, weighting, method = samples(k), peer.GradVacWeighting(beta=0.3, eps=0.0), realign.gradvac(decay=0.7)
    state = method.init()
    for step in range(len(g)):
        weights, state = method.update(gram(g[step, None]), state)
        same_weights(weights, weighting(gram(g[step]))[None], g[step, None], 1e-6)


@LOSSES
@pytest.mark.parametrize("name", ["upgrad", "dualproj"])
def test_projections_on_the_dual_cone(name, k):
    """Measured: 5e-10, by the 1e-12 that both add, ours to cosines, theirs to a Gram of trace one."""
    g = samples(k)
    ours, theirs = {
        "upgrad": (realign.upgrad, peer.UPGradWeighting),
        "dualproj": (realign.dualproj, peer.DualProjWeighting),
    }[name]
    for wanted in (torch.ones(k, dtype=torch.float64), torch.arange(k, dtype=torch.float64)):
        expected = each(theirs(pref_vector=wanted, projector=projector()), g)
        same_weights(ours(gram(g), preference=wanted), expected, g, 1e-8)


def test_mgda_of_two():
    """Measured: 8e-16."""
    g = samples(2)
    same_weights(realign.mgda(gram(g)), each(peer.MGDAWeighting(), g), g, 1e-12)


@pytest.mark.parametrize("k", [3, 4])
def test_mgda_is_no_longer_than_the_peers(k):
    """Its Frank-Wolfe stops early. Measured: |d| up to 12% too long, the weights off by 0.06 of the update's scale."""
    g = samples(k)
    ours, theirs = (combine(weights, g) for weights in (realign.mgda(gram(g)), each(peer.MGDAWeighting(), g)))
    at_most(lengths(ours), lengths(theirs) * (1 + 1e-12))
    residual, rough = ((lengths(d)[:, None] ** 2 - inner(d, g)).amax(-1) for d in (ours, theirs))
    at_most(residual, rough.clamp(min=0) + 1e-11 * lengths(g).amin(-1) ** 2)


@LOSSES
@pytest.mark.parametrize("c", [0.2, 0.5])
def test_cagrad(k, c):
    """Its solver stops early. Measured: weights 8e-5 apart; the worst-off loss up to 4e-4 worse off with the peer."""
    for module in ("cvxpy", "clarabel"):
        pytest.importorskip(module)
    g = samples(k, size=12)
    theirs = each(peer.CAGradWeighting(c=c, norm_eps=0.0), g)
    ours = realign.cagrad(gram(g), c=c, preference=[1 / k] * k)
    same_weights(ours, theirs, g, 5e-4)
    reached, reachable = (inner(combine(weights, g), g).amin(-1) for weights in (theirs, ours))
    at_most(reached - reachable, 1e-10 * lengths(g).mean(1) * lengths(g).amin(1))
    total = g.mean(1)
    at_most(lengths(combine(ours, g) - total), c * lengths(total) * (1 + 1e-9))


@LOSSES
def test_imtl_g(k):
    """Measured: 7e-15. Where the sum of the weights is positive uphill only, ours goes the other way."""
    g = samples(k)
    theirs = each(peer.IMTLGWeighting(), g)
    same_weights(realign.imtl_g(gram(g)), theirs, g, 1e-12)
    g = torch.where(theirs[..., None] < 0, 1e-2 * g, g)  # negative weights become large
    ours, theirs = realign.imtl_g(gram(g)), each(peer.IMTLGWeighting(), g)
    uphill = inner(combine(theirs, g), g)[:, :1] < 0
    assert k == 2 or uphill.any()
    same_weights(ours, torch.where(uphill, -theirs, theirs), g, 1e-10)


@LOSSES
def test_aligned_mtl(k):
    """Measured: 3e-15."""
    g = samples(k)
    for wanted in (torch.ones(k, dtype=torch.float64), torch.arange(k, dtype=torch.float64)):
        same_weights(
            realign.aligned_mtl(gram(g), preference=wanted), each(peer.AlignedMTLWeighting(pref_vector=wanted), g), g
        )


@LOSSES
def test_config(k):
    """Measured: 1e-14."""
    g = samples(k)
    for wanted in (None, torch.arange(1, k + 1, dtype=torch.float64)):
        ours = combine(realign.config(gram(g), preference=wanted), g)
        theirs = torch.stack([peer.ConFIG(pref_vector=wanted)(matrix) for matrix in g])
        at_most(lengths(ours - theirs), 1e-11 * lengths(ours))


@LOSSES
def test_nash_mtl(k):
    """The peer solves for a Gram of norm one, so that only directions compare. Where its solver succeeds they agree to
    1e-8 in the median; on some samples it gives up far from the solution."""
    for module in ("cvxpy", "ecos"):
        pytest.importorskip(module)
    g = samples(k, size=16)

    def unfair(weights):
        """How much the shares W_k <g_k, d> differ."""
        shares = weights * inner(combine(weights, g), g)
        return (shares / shares.mean(-1, keepdim=True) - 1).abs().amax(-1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch.stack([peer.NashMTL(n_tasks=k, max_norm=0.0).weighting(matrix) for matrix in g])
    ours = realign.nash_mtl(gram(g))
    at_most(unfair(ours), unfair(theirs) + 1e-9)
    solved = unfair(theirs) < 1e-6
    assert solved.double().mean() > 0.5
    apart = lengths(unit(combine(ours, g)) - unit(combine(theirs, g)))
    at_most(apart[solved], 1e-6)


@LOSSES
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_fairgrad(k, alpha):
    """Measured: weights 5e-9 apart; the peer's equation holds to 3e-8, ours to 2e-10."""
    pytest.importorskip("scipy")
    g = samples(k, size=12)
    theirs, ours = each(peer.FairGradWeighting(alpha=alpha), g), realign.fairgrad(gram(g), alpha=alpha)

    def residual(weights):
        products = inner(combine(weights, g), g)
        return (products * weights ** (1 / alpha) - 1).abs().amax(-1)

    at_most(residual(ours), residual(theirs) + 1e-8)
    same_weights(ours, theirs, g, 1e-6)
