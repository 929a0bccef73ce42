"""Time the realignments on Gram blocks, against TorchJD's weightings called sample by sample.

OMP_NUM_THREADS=1 python -m recipes.research.benchmark realign batch=[2048] losses=[2,4] methods=[pcgrad,mgda]
python -m recipes.research.benchmark realign batch=[64] samples=4 full=8 repeats=3    a minute
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from recipes.cli import Command
from recipes.keys import key
from recipes.progress import progress_bar
from recipes.research.benchmark import machine, tables
from recipes.research.benchmark.racing import Entrant, Rules, Timing, quartiles, race, reported
from recipes.research.benchmark.realign_peers import OWN, PEERS, Case, check, compiled
from recipes.research.benchmark.suite import CompileKeys, unknown
from recipes.research.benchmark.tables import markdown

AT_LEAST = 0.02  # seconds that a reading takes
OURS, COMPILED, PEER, ALL_PAIRS = "harmony", "harmony, compiled", "TorchJD", "TorchJD, all pairs"


@dataclass
class RealignKeys(CompileKeys):
    """What to time, and at which sizes."""

    batch: list[int] = key([2048], "samples", least=1)
    losses: list[int] = key([2, 4], "losses of a sample; there is nothing to realign with fewer than two", least=2)
    methods: list[str] = key(list(OWN), "of harmony.realign")
    samples: int = key(64, "that TorchJD is timed on, and scaled up from", least=1)
    full: int = key(256, "samples on which PCGrad is timed with nothing scaled up", least=1)

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from unknown("methods", self.methods, list(OWN))


@dataclass
class Result(Timing):
    """What was measured of one method of `harmony.realign` in one version."""

    case: Case
    method: str
    who: str  # whose version
    timed: int  # samples; the seconds are scaled up from them to the whole batch
    deviation: float | None = None  # relative, of its weights from ours: the worst sample's, or the median
    note: str = ""  # on the deviation


def run(keys: RealignKeys) -> None:
    about = machine.facts(keys.device) | {"torchjd": _version("torchjd")}
    full = [Case(keys.full, losses, keys.device) for losses in keys.losses] if "pcgrad" in keys.methods else []
    cases = [Case(batch, losses, keys.device) for losses in keys.losses for batch in keys.batch]
    races = [pcgrad_in_full(case) for case in full]
    races += [all_methods(case, keys.methods, keys.samples, keys.compile) for case in cases]
    results: list[Result] = []
    with progress_bar(total=len(races) * (keys.repeats + 1), desc="realign", unit="round") as bar:
        for contenders in races:
            results += measure(contenders, keys.rules(AT_LEAST), bar.update)
            text = report(results, about)
            files = tables.write(keys.out, "realign", records(results, about), text)
    tables.show(text, files)


Make = Callable[[], Callable[[], Tensor]]  # gives what is timed, or raises why there is nothing


def all_methods(case: Case, names: list[str], samples: int, compile: bool = False) -> Iterator[tuple[Result, Make]]:
    """Every method: ours on the whole batch, perhaps also compiled, and the peer's on the batch's first samples."""
    gradients, gram = case.draw()
    for name in names:
        own = OWN[name]()
        yield Result(case, name, OURS, case.batch), lambda own=own: partial(own, gram)
        if compile:
            yield Result(case, name, COMPILED, case.batch), lambda own=own: partial(compiled(own, gram), gram)
        theirs = Result(case, name, PEER, min(samples, case.batch))
        if name not in PEERS:
            theirs.skipped = "has none"
        yield theirs, partial(_peer, theirs, gradients, gram)


def pcgrad_in_full(case: Case) -> Iterator[tuple[Result, Make]]:
    """PCGrad on every sample of a batch, nothing scaled up: ours, the peer sample by sample, and on all pairs.

    On all pairs, the peer gets the Gram of all B K gradients, (B K, B K), as its engine computes it, and projects each
    of them against every other: different weights, and the price of not telling samples from losses.
    """
    gradients, gram = case.draw()
    ours, theirs, pairs = (Result(case, "pcgrad", who, case.batch) for who in (OURS, PEER, ALL_PAIRS))
    pairs.note = "other weights"
    flat = gradients.flatten(0, 1)
    yield ours, lambda: partial(OWN["pcgrad"](), gram)
    yield theirs, partial(_peer, theirs, gradients, gram)
    yield pairs, lambda: partial(PEERS["pcgrad"].over(case), (flat @ flat.mT)[None])


def _peer(result: Result, gradients: Tensor, gram: Tensor) -> Callable[[], Tensor]:
    """The peer's version on the first samples, once its weights are checked."""
    peer = PEERS[result.method]
    result.deviation, result.note = check(result.method, result.case)
    return partial(peer.over(result.case), peer.inputs(gradients, gram)[: result.timed])


def measure(
    contenders: Iterable[tuple[Result, Make]], rules: Rules, advance: Callable[[], Any] = lambda: None
) -> list[Result]:
    """Race the methods of one size; a ratio is that to our own version of the same method.

    The limit of the rules is that of a call before its time is scaled up; ``advance`` is called as by `race`.
    """
    torch.compiler.reset()  # what was compiled for another size counts towards a limit
    results, entrants = [], []
    for result, make in contenders:
        results.append(result)
        if not result.skipped:
            with reported(result):
                call, scale = make(), result.case.batch / result.timed
                entrants.append(Entrant(result, lambda _, call=call: call(), warm_up=2, scale=scale))
    race(entrants, rules, advance=advance)
    ours = {r.method: r.seconds for r in results if r.who == OURS}
    for result in results:
        result.relate(ours[result.method])
    return results


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


# ------------------------------------------------------------------------------------------------------------- writing
def records(results: list[Result], about: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for r in results:
        names = {"batch": r.case.batch, "losses": r.case.losses, "device": r.case.device, "method": r.method}
        columns = r.columns() | {"us_per_sample": 1e6 * quartiles(r.seconds)[1] / r.case.batch}
        deviation = {"deviation": r.deviation, "note": r.note}
        rows.append(names | {"who": r.who, "samples_timed": r.timed} | columns | deviation | about)
    return rows


def report(results: list[Result], about: dict[str, Any]) -> str:
    """Markdown: a table for each size."""
    lines = [
        "## Realignments",
        "",
        f"Weights of random Gram blocks in float32; {machine.described(about)}, TorchJD {about['torchjd']}. Medians; "
        "times are scaled up from the samples that were timed. A ratio is that of the times within a round, with its "
        "quartiles in brackets. Deviation: relative difference of the weights from ours, of the worst sample.",
    ]
    head = ["method", "whose", "samples timed", "ms", "µs per sample", "to ours", "deviation"]
    for case in dict.fromkeys(r.case for r in results):
        rows = [_row(r) for r in results if r.case == case]
        lines += ["", f"### B={case.batch}, K={case.losses}", "", *markdown(head, rows, words=(0, 1))]
    return "\n".join(lines) + "\n"


def _row(r: Result) -> list[str]:
    """Cells of a result; the reason in place of times, if it was skipped."""
    if r.skipped:
        return [r.method, r.who, "", r.skipped]
    seconds = quartiles(r.seconds)[1]
    times = [_digits(1e3 * seconds), _digits(1e6 * seconds / r.case.batch)]
    low, ratio, high = map(_digits, quartiles(r.ratios))
    to_ours = f"{ratio} [{low}, {high}]" if r.ratios and r.who != OURS else ""
    deviation = ", ".join(filter(None, ["" if r.deviation is None else f"{r.deviation:.0e}", r.note]))
    return [r.method, r.who, str(r.timed), *times, to_ours, deviation]


def _digits(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


COMMAND = Command("recipes.research.benchmark realign", __doc__, RealignKeys, run)
