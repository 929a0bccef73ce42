"""TorchJD's versions of the realignments, called sample by sample, and the check that their weights are ours."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

import harmony
from recipes.research.benchmark.racing import WrongAnswer

Weigh = Callable[[Tensor], Tensor]  # Gram blocks (B, K, K) -> weights (B, K)

ENTRIES = 8  # of a gradient; what takes gradients in place of Gram blocks has little to do per entry
CHECKED_ON = 64  # samples, in float64
TOLERANCE = 1e-3  # relative difference of a sample's weights; different methods differ by tenths
TARGET = 0.3  # cosine that GradVac aims at


@dataclass(frozen=True)
class Case:
    """One size: samples B and losses K, and where and in what they are computed."""

    batch: int
    losses: int
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def draw(self) -> tuple[Tensor, Tensor]:
        """Random gradients (B, K, ENTRIES), of norms that differ by about e, and their Gram blocks (B, K, K)."""
        generator = torch.Generator().manual_seed(0)
        draw = partial(torch.randn, dtype=torch.float64, generator=generator)
        g = draw(self.batch, self.losses, ENTRIES) * (draw(self.batch, self.losses, 1) / 2).exp()
        return g.to(self.device, self.dtype), (g @ g.mT).to(self.device, self.dtype)


# ---------------------------------------------------------------------------------------------------------------- ours
def _first_step(transform: harmony.Transform) -> Weigh:
    """A transform at its first step, as a function."""
    state = transform.init()
    return lambda gram: transform.update(gram, state)[0]


OWN: dict[str, Callable[[], Weigh]] = {
    "summed": lambda: harmony.realign.summed,
    "mean": lambda: harmony.realign.mean,
    "normalized": lambda: harmony.realign.normalized,
    "random": lambda: _first_step(harmony.realign.random()),
    "pcgrad": lambda: harmony.realign.pcgrad,
    "pcgrad_random": lambda: _first_step(harmony.realign.pcgrad_random()),
    "gradvac": lambda: _first_step(harmony.realign.gradvac(target=TARGET)),
    "upgrad": lambda: harmony.realign.upgrad,
    "dualproj": lambda: harmony.realign.dualproj,
    "mgda": lambda: harmony.realign.mgda,
    "cagrad": lambda: partial(harmony.realign.cagrad, c=0.5),
    "imtl_g": lambda: harmony.realign.imtl_g,
    "nash_mtl": lambda: harmony.realign.nash_mtl,
    "fairgrad": lambda: partial(harmony.realign.fairgrad, alpha=2.0),
    "aligned_mtl": lambda: harmony.realign.aligned_mtl,
    "config": lambda: harmony.realign.config,
}


# --------------------------------------------------------------------------------------------------------------- peers
@dataclass(frozen=True)
class Peer:
    """TorchJD's version of a method, and whether its weights can be compared with ours."""

    make: Callable[[ModuleType, Case], Callable[[Tensor], Tensor]]  # a function of one sample; raises why there is none
    takes: Literal["gram", "gradients"] = "gram"  # of the sample: (K, K) or (K, P)
    # "mean weights" are for the mean of the losses, not the sum; of "proportions" only the ratios count.
    gives: Literal["weights", "mean weights", "proportions", "update"] = "weights"
    # With any number of losses; with two (beyond, it is random or stops early); "most": the median sample, as its
    # solver fails on some.
    exact: Literal["any", "two", "most", "never"] = "any"
    why: str = ""  # they are not compared

    def over(self, case: Case) -> Weigh:
        """The function, sample by sample; an ImportError if TorchJD or a solver that it needs is not installed."""
        return partial(each, self.make(_torchjd(), case))

    def inputs(self, gradients: Tensor, gram: Tensor) -> Tensor:
        """Which of the two the function takes."""
        return gram if self.takes == "gram" else gradients


def _torchjd() -> ModuleType:
    return importlib.import_module("torchjd.aggregation")


def _ones(case: Case) -> Tensor:
    return torch.ones(case.losses, dtype=case.dtype, device=case.device)


def _projector() -> Any:
    """TorchJD's solver with hardly any regularisation, so that its answer can be compared; it is as fast with it."""
    return importlib.import_module("torchjd.linalg").QuadprogProjector(norm_eps=0.0, reg_eps=1e-10)


def _vaccine(torchjd: ModuleType, case: Case) -> Callable[[Tensor], Tensor]:
    """GradVac with a fixed target: it sees one Gram of that cosine, and then forgets nothing."""
    weighting = torchjd.GradVacWeighting(beta=1.0, eps=0.0)
    ones = _ones(case)
    weighting(torch.diag((1 - TARGET) * ones) + TARGET * torch.outer(ones, ones))
    weighting.beta = 0.0
    return weighting


def _nash(torchjd: ModuleType, case: Case) -> Callable[[Tensor], Tensor]:
    return torchjd.NashMTL(case.losses, max_norm=0.0).weighting


ANY_ORDER = "draws its order"
PEERS: dict[str, Peer] = {
    "summed": Peer(lambda torchjd, case: torchjd.SumWeighting()),
    "mean": Peer(lambda torchjd, case: torchjd.MeanWeighting()),
    "random": Peer(lambda torchjd, case: torchjd.RandomWeighting(), exact="never", why="random"),
    "pcgrad": Peer(lambda torchjd, case: torchjd.PCGradWeighting(), exact="two", why=ANY_ORDER),
    "pcgrad_random": Peer(lambda torchjd, case: torchjd.PCGradWeighting(), exact="two", why=ANY_ORDER),
    "gradvac": Peer(_vaccine, exact="two", why=ANY_ORDER),
    "upgrad": Peer(lambda torchjd, case: torchjd.UPGradWeighting(_ones(case), _projector())),
    "dualproj": Peer(lambda torchjd, case: torchjd.DualProjWeighting(_ones(case), _projector())),
    "mgda": Peer(lambda torchjd, case: torchjd.MGDAWeighting(), exact="two", why="stops after 100 steps"),
    "cagrad": Peer(lambda torchjd, case: torchjd.CAGradWeighting(0.5, norm_eps=0.0), gives="mean weights"),
    "imtl_g": Peer(lambda torchjd, case: torchjd.IMTLGWeighting()),
    "nash_mtl": Peer(_nash, takes="gradients", gives="proportions", exact="most"),
    "fairgrad": Peer(lambda torchjd, case: torchjd.FairGradWeighting(2.0)),
    "aligned_mtl": Peer(lambda torchjd, case: torchjd.AlignedMTLWeighting(_ones(case))),
    "config": Peer(lambda torchjd, case: torchjd.ConFIG(), takes="gradients", gives="update"),
}


def each(peer: Callable[[Tensor], Tensor], samples: Tensor) -> Tensor:
    return torch.stack([peer(sample) for sample in samples])


def check(name: str, case: Case) -> tuple[float | None, str]:
    """Relative difference of a peer's weights from ours on a few samples, in float64, and a note for the table.

    It is None if the two cannot be compared; a WrongAnswer if it is above the tolerance.
    """
    peer = PEERS[name]
    if peer.exact == "never" or (peer.exact == "two" and case.losses > 2):
        return None, peer.why
    case = Case(CHECKED_ON, case.losses, case.device, torch.float64)
    gradients, gram = case.draw()
    ours = OWN[name]()(gram)
    theirs = peer.over(case)(peer.inputs(gradients, gram))
    if peer.gives == "update":
        ours = (ours[..., None] * gradients).sum(1)
    elif peer.gives == "mean weights":
        theirs = theirs * case.losses
    elif peer.gives == "proportions":
        ours, theirs = (torch.nn.functional.normalize(w, dim=-1) for w in (ours, theirs))
    differences = (theirs - ours).norm(dim=-1) / ours.norm(dim=-1)
    note = ""
    if peer.exact == "most":
        off = int((differences > TOLERANCE).sum())
        note = f"median; {off} of {CHECKED_ON} samples off by more than {TOLERANCE:g}"
    difference = float(differences.median() if peer.exact == "most" else differences.max())
    if not difference <= TOLERANCE:
        raise WrongAnswer(f"wrong: its weights and ours differ by {difference:.1e}")
    return difference, note


def compiled(own: Weigh, gram: Tensor) -> Weigh:
    """A method through `torch.compile`, after its first call; a WrongAnswer if its weights change."""
    fast = torch.compile(own, dynamic=False)
    expected = own(gram)
    error = float((fast(gram) - expected).norm() / expected.norm())
    if not error <= TOLERANCE:
        raise WrongAnswer(f"wrong: compiled, its weights differ by {error:.1e}")
    return fast
