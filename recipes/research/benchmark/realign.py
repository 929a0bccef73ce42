"""Times of the realignments on Gram blocks, against TorchJD's weightings called sample by sample."""

import gc
import importlib
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

import harmony
from recipes.research.benchmark.timing import WrongAnswer, quartiles, relate, reported, timed

Weigh = Callable[[Tensor], Tensor]  # Gram blocks (B, K, K) -> weights (B, K)
Call = Callable[[], Tensor]

ENTRIES = 8  # of a gradient; whatever takes gradients in place of Gram blocks has little to do per entry
CHECKED_ON = 64  # samples, in float64
TOLERANCE = 1e-3  # relative difference of a sample's weights; different methods are off by tenths
AT_LEAST = 0.02  # seconds a reading takes: what is faster is called several times
MOST_CALLS = 200
OURS, COMPILED, PEER, ALL_PAIRS = "harmony", "harmony, compiled", "TorchJD", "TorchJD, all pairs"
TARGET = 0.3  # cosine that GradVac aims at


@dataclass(frozen=True)
class Case:
    """One size.

    Attributes:
        batch: Samples B.
        losses: Losses K.
        device: "cpu" or "cuda".
        dtype: Of gradients and Gram blocks.
    """

    batch: int
    losses: int
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def draw(self) -> tuple[Tensor, Tensor]:
        """Random gradients (B, K, ENTRIES), of norms that differ by e or so, and their Gram blocks (B, K, K)."""
        generator = torch.Generator().manual_seed(0)
        draw = partial(torch.randn, dtype=torch.float64, generator=generator)
        g = draw(self.batch, self.losses, ENTRIES) * (draw(self.batch, self.losses, 1) / 2).exp()
        return g.to(self.device, self.dtype), (g @ g.mT).to(self.device, self.dtype)


@dataclass(frozen=True)
class Peer:
    """TorchJD's version of a method.

    Attributes:
        make: ``make(torchjd.aggregation, case) -> function`` of one sample; raises what says why there is none.
        takes: What the function is given: the sample's Gram (K, K), or its gradients (K, P).
        gives: What it returns: weights; weights for the mean of the losses, not the sum; weights of which only the
            proportions count; the update.
        exact: How many losses the two may have to be compared at: any number, two alone (beyond, it is random or stops
            early), or "most" where its solver fails on some samples, so that the median counts; "never".
        why: What stands in the table where they are not compared.
    """

    make: Callable[[ModuleType, Case], Callable[[Tensor], Tensor]]
    takes: Literal["gram", "gradients"] = "gram"
    gives: Literal["weights", "mean weights", "proportions", "update"] = "weights"
    exact: Literal["any", "two", "most", "never"] = "any"
    why: str = ""


@dataclass
class Result:
    """What was found of one method in one version.

    Attributes:
        case: The size.
        method: Name in `harmony.realign`.
        who: Whose version.
        timed: Samples that were timed.
        seconds: Per call on the whole batch, of each round; scaled up where fewer samples were timed.
        relative: The same divided by ours in the same round.
        deviation: Relative difference of its weights from ours: the worst sample's, or the median.
        note: What the deviation needs said.
        skipped: Why it was not timed.
    """

    case: Case
    method: str
    who: str
    timed: int
    seconds: list[float] = field(default_factory=list)
    relative: list[float] = field(default_factory=list)
    deviation: float | None = None
    note: str = ""
    skipped: str = ""


# ---------------------------------------------------------------------------------------------------------------- ours
def _of(transform: harmony.Transform) -> Weigh:
    """A transform at its first step, as a function."""
    state = transform.init()
    return lambda gram: transform.update(gram, state)[0]


OWN: dict[str, Callable[[], Weigh]] = {
    "summed": lambda: harmony.realign.summed,
    "mean": lambda: harmony.realign.mean,
    "normalized": lambda: harmony.realign.normalized,
    "random": lambda: _of(harmony.realign.random()),
    "pcgrad": lambda: harmony.realign.pcgrad,
    "pcgrad_random": lambda: _of(harmony.realign.pcgrad_random()),
    "gradvac": lambda: _of(harmony.realign.gradvac(target=TARGET)),
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
def _ones(case: Case) -> Tensor:
    return torch.ones(case.losses, dtype=case.dtype, device=case.device)


def _projector() -> Any:
    """TorchJD's solver with hardly any regularisation, so that its answer can be compared; it is as fast with it."""
    return importlib.import_module("torchjd.linalg").QuadprogProjector(norm_eps=0.0, reg_eps=1e-10)


def _vaccine(torchjd: ModuleType, case: Case) -> Callable[[Tensor], Tensor]:
    """GradVac with its moving target held: shown one Gram of that cosine, then told to forget nothing."""
    weighting = torchjd.GradVacWeighting(beta=1.0, eps=0.0)
    ones = _ones(case)
    weighting(torch.diag((1 - TARGET) * ones) + TARGET * torch.outer(ones, ones))
    weighting.beta = 0.0
    return weighting


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
    "nash_mtl": Peer(
        lambda torchjd, case: torchjd.NashMTL(case.losses, max_norm=0.0).weighting,
        takes="gradients", gives="proportions", exact="most",
    ),
    "fairgrad": Peer(lambda torchjd, case: torchjd.FairGradWeighting(2.0)),
    "aligned_mtl": Peer(lambda torchjd, case: torchjd.AlignedMTLWeighting(_ones(case))),
    "config": Peer(lambda torchjd, case: torchjd.ConFIG(), takes="gradients", gives="update"),
}  # fmt: skip


def each(peer: Callable[[Tensor], Tensor], samples: Tensor) -> Tensor:
    """What a function of one sample gives for each."""
    return torch.stack([peer(sample) for sample in samples])


def check(name: str, case: Case) -> tuple[float | None, str]:
    """Difference of a peer's weights from ours on a few samples of a case, in float64.

    Returns:
        The relative difference, None where the two are not to be compared; and what is to be said about it.

    Raises:
        WrongAnswer: It is above the tolerance.
    """
    peer = PEERS[name]
    if peer.exact == "never" or (peer.exact == "two" and case.losses > 2):
        return None, peer.why
    case = Case(CHECKED_ON, case.losses, case.device, torch.float64)
    gradients, gram = case.draw()
    ours = OWN[name]()(gram)
    theirs = each(peer.make(_torchjd(), case), gram if peer.takes == "gram" else gradients)
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
    found = float(differences.median() if peer.exact == "most" else differences.max())
    if not found <= TOLERANCE:
        raise WrongAnswer(f"wrong: its weights and ours differ by {found:.1e}")
    return found, note


def _torchjd() -> ModuleType:
    return importlib.import_module("torchjd.aggregation")


# -------------------------------------------------------------------------------------------------------------- timing
@dataclass
class Entrant:
    """A result to be filled, what to call, and how many times per reading."""

    result: Result
    call: Call
    calls: int = 1


def race(
    case: Case, names: list[str], repeats: int, samples: int, limit: float, compiled: bool = False,
    advance: Callable[[], Any] = lambda: None,
) -> list[Result]:  # fmt: skip
    """Check and time methods at one size, ours on the whole batch, the peer's on its first samples.

    Args:
        case: The size.
        names: Methods.
        repeats: Rounds. In each, everybody is timed once on the same blocks; the order rotates.
        samples: Samples of which the peer is timed; its times are scaled up to the batch.
        limit: Seconds a call may take, before scaling; slower ones are skipped.
        compiled: Whether ours run beside themselves compiled.
        advance: Called after the check and each round, ``repeats + 1`` times.

    Returns:
        Two results per method, ours and the peer's, three with the compiled one.
    """
    gradients, gram = case.draw()
    samples = min(samples, case.batch)
    results, entrants = [], []
    torch.compiler.reset()  # what was compiled for another size counts towards a limit
    for name in names:
        own = OWN[name]()
        results.append(ours := Result(case, name, OURS, case.batch))
        entrants.append(Entrant(ours, partial(own, gram)))
        if compiled:
            results.append(fast := Result(case, name, COMPILED, case.batch))
            with reported(fast):
                entrants.append(Entrant(fast, partial(_compiled(own, gram), gram)))
        results.append(theirs := Result(case, name, PEER, samples))
        if name not in PEERS:
            theirs.skipped = "has none"
            continue
        with reported(theirs):
            theirs.deviation, theirs.note = check(name, case)
            given = gram if PEERS[name].takes == "gram" else gradients
            entrants.append(Entrant(theirs, partial(each, PEERS[name].make(_torchjd(), case), given[:samples])))
    advance()
    measure(entrants, repeats, limit, case.device, advance)
    return results


def race_in_full(case: Case, repeats: int, limit: float, advance: Callable[[], Any] = lambda: None) -> list[Result]:
    """PCGrad on every sample of a batch, nothing scaled up: ours, the peer sample by sample, and on all pairs.

    On all pairs, the peer gets the Gram of all B K gradients, (B K, B K), as its engine computes it, and projects each
    of them against every other: different weights, and the price of not telling samples from losses.

    Args:
        case: The size.
        repeats: Rounds, as in `race`.
        limit: Seconds a call may take.
        advance: As in `race`.

    Returns:
        Three results.
    """
    gradients, gram = case.draw()
    name = "pcgrad"
    results = [Result(case, name, who, case.batch) for who in (OURS, PEER, ALL_PAIRS)]
    entrants = [Entrant(results[0], partial(OWN[name](), gram))]
    with reported(results[1]):
        results[1].deviation, results[1].note = check(name, case)
        entrants.append(Entrant(results[1], partial(each, PEERS[name].make(_torchjd(), case), gram)))
    flat = gradients.flatten(0, 1)
    results[2].note = "other weights"
    with reported(results[2]):
        entrants.append(Entrant(results[2], partial(PEERS[name].make(_torchjd(), case), flat @ flat.mT)))
    advance()
    measure(entrants, repeats, limit, case.device, advance)
    return results


def measure(entrants: list[Entrant], repeats: int, limit: float, device: str, advance: Callable[[], Any]) -> None:
    """Time everybody in rounds, in an order that rotates, and fill in their results."""
    gc.collect()
    gc.freeze()  # what lives by now need not be searched at every reading
    for entrant in entrants:
        with reported(entrant.result):
            seconds = min(timed(entrant.call, device) for _ in range(2))
            if seconds > limit:
                raise TimeoutError(f"a call takes {seconds:.1f} s, more than the limit of {limit:g} s")
            entrant.calls = min(math.ceil(AT_LEAST / seconds), MOST_CALLS)
    entrants = [e for e in entrants if not e.result.skipped]
    for number in range(repeats):
        first = number * len(entrants) // repeats  # a different neighbourhood, and start, every time
        for entrant in entrants[first:] + entrants[:first]:
            result = entrant.result
            if not result.skipped:
                with reported(result):
                    seconds = timed(entrant.call, device, entrant.calls)
                    result.seconds.append(seconds * result.case.batch / result.timed)
        advance()
    gc.unfreeze()
    ours = {e.result.method: e.result.seconds for e in entrants if e.result.who == OURS}
    for result in (e.result for e in entrants):
        relate(result, ours.get(result.method, []))


def _compiled(own: Weigh, gram: Tensor) -> Weigh:
    """A method through `torch.compile`, with its first call behind it.

    Raises:
        WrongAnswer: It gives other weights then.
    """
    fast = torch.compile(own, dynamic=False)
    expected = own(gram)
    error = float((fast(gram) - expected).norm() / expected.norm())
    if not error <= TOLERANCE:
        raise WrongAnswer(f"wrong: compiled, its weights differ by {error:.1e}")
    return fast


# ------------------------------------------------------------------------------------------------------------- writing
def records(results: list[Result], facts: dict[str, Any]) -> list[dict[str, Any]]:
    """One flat record per result."""
    rows = []
    for r in results:
        low, median, high = quartiles(r.seconds)
        ratio_low, ratio, ratio_high = quartiles(r.relative)
        rows.append(
            {
                "batch": r.case.batch, "losses": r.case.losses, "device": r.case.device, "method": r.method,
                "who": r.who, "samples_timed": r.timed, "rounds": len(r.seconds),
                "seconds": median, "seconds_q1": low, "seconds_q3": high,
                "us_per_sample": 1e6 * median / r.case.batch,
                "ratio_to_ours": ratio, "ratio_q1": ratio_low, "ratio_q3": ratio_high,
                "deviation": r.deviation, "note": r.note, "skipped": r.skipped, **facts,
            }
        )  # fmt: skip
    return rows


def report(scaled: list[Result], full: list[Result], facts: dict[str, Any]) -> str:
    """Markdown: PCGrad in full, then a table of all methods for each size."""
    threads = f"{facts['threads']} thread" + ("s" if facts["threads"] != 1 else "")
    lines = [
        "## Realignments",
        "",
        f"Weights of random Gram blocks in float32; {facts['machine']}, {threads}, torch "
        f"{facts['torch']}, TorchJD {facts['torchjd']}, {facts['date']}. Medians, quartiles of the ratio in brackets; "
        "a ratio is that of the times within a round. Deviation: relative difference of the weights from ours, of the "
        "worst sample.",
    ]
    for case in dict.fromkeys(r.case for r in full):
        lines += [
            "",
            f"### PCGrad in full, B={case.batch}, K={case.losses}",
            "",
            *_full([r for r in full if r.case == case]),
        ]
    for case in dict.fromkeys(r.case for r in scaled):
        found = [r for r in scaled if r.case == case]
        lines += ["", f"### All methods, B={case.batch}, K={case.losses}", "", *_scaled(found)]
    return "\n".join(lines) + "\n"


def _full(results: list[Result]) -> list[str]:
    lines = ["| who | ms | µs per sample | to ours | deviation |", "|---|---:|---:|---:|---:|"]
    for r in results:
        if r.skipped:
            lines.append(f"| {r.who} | {_escaped(r.skipped)} | | | |")
        else:
            lines.append(f"| {r.who} | {_milliseconds(r)} | {_microseconds(r)} | {_ratio(r)} | {_deviation(r)} |")
    return lines


def _scaled(results: list[Result]) -> list[str]:
    timed = next(r.timed for r in results if r.who == PEER)
    batch = results[0].case.batch
    peer = f"{PEER}, ms" + (f" ({timed} samples timed, scaled up)" if timed < batch else "")
    compiled = any(r.who == COMPILED for r in results)
    head = ["method", "ms", "µs per sample", *(["compiled, ms"] if compiled else []), peer, "µs per sample", "ratio"]
    lines = [f"| {' | '.join([*head, 'deviation'])} |", f"|---|{'---:|' * len(head)}"]
    for method in dict.fromkeys(r.method for r in results):
        by = {r.who: r for r in results if r.method == method}
        ours, theirs = by[OURS], by[PEER]
        cells = [method, _milliseconds(ours), _microseconds(ours)]
        cells += [_milliseconds(by[COMPILED])] if compiled else []
        cells += [_milliseconds(theirs), _microseconds(theirs), _ratio(theirs), _deviation(theirs)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _milliseconds(result: Result) -> str:
    return _escaped(result.skipped) or _digits(1e3 * statistics.median(result.seconds))


def _microseconds(result: Result) -> str:
    return "" if result.skipped else _digits(1e6 * statistics.median(result.seconds) / result.case.batch)


def _ratio(result: Result) -> str:
    if not result.relative or result.who == OURS:
        return ""
    low, middle, high = (_digits(value) for value in quartiles(result.relative))
    return f"{middle} [{low}, {high}]"


def _deviation(result: Result) -> str:
    number = [] if result.deviation is None else [f"{result.deviation:.0e}"]
    return ", ".join([*number, *([result.note] if result.note else [])])


def _digits(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
