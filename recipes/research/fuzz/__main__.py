"""Damage real inputs at random, and see that each works, is skipped with a reason or is refused with a reason.

python -m recipes.research.fuzz what=[media,manifests] cases=1000 seed=0 seconds=600 workers=2
python -m recipes.research.fuzz what=[media] only=123 seed=0    one case again, in this process, with its traceback

Every case has a process of its own to die in, and bounded time. Another error, a death and a hang are failures: each is
printed with the command that repeats it, and the exit status is 1. Inputs are made here, in a temporary folder.
"""

import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from recipes import cli
from recipes.cli import Command
from recipes.data.skipped import Skipped
from recipes.data.workers import guarded
from recipes.keys import key
from recipes.progress import progress_bar
from recipes.research.fuzz.case import Case, run
from recipes.research.fuzz.kinds import KINDS

TIMEOUT = 60.0  # seconds for a case, on a busy machine
ALLOWED = ("works", "skipped", "refused")


@dataclass
class FuzzKeys:
    """What to damage, and how often."""

    what: list[Literal["media", "manifests", "shards", "configurations", "checkpoints", "tables"]] = key(
        list(KINDS), "inputs to damage"
    )
    cases: int = key(1000, "of each kind", least=1)
    only: int | None = key(None, "number of one case, which is tried in this process", least=0)
    seed: int = key(0, "of all randomness, together with a case's number", least=0, most=2**32 - 1)
    seconds: float = key(600.0, "after which no case is begun, for each kind", more_than=0)
    workers: int = key(2, "processes", least=1, most=1024)


def fuzz_all(settings: FuzzKeys) -> int:
    """Try cases of every kind and print how many had each verdict; 0 if none failed."""
    failed = False
    with TemporaryDirectory(prefix="fuzz-") as scratch:
        for kind in settings.what:
            if settings.only is not None:
                KINDS[kind].make(Path(scratch, kind))
                print(f"{kind} {settings.only}: {run(Case(kind, settings.only, settings.seed), Path(scratch), True)}")
                continue
            until = time.monotonic() + settings.seconds
            cases = [Case(kind, number, settings.seed) for number in range(settings.cases)]
            counts = fuzz(kind, cases, settings.workers, Path(scratch), until)
            print(f"{kind}: {sum(counts.values())} cases; " + ", ".join(f"{n} {name}" for name, n in counts.items()))
            failed |= any(name not in ALLOWED for name in counts)
    return int(failed)


def fuzz(kind: str, cases: list[Case], workers: int, folder: Path, until: float) -> Counter[str]:
    """Try cases of one kind until a time by `time.monotonic`; count their verdicts and print the failures."""
    KINDS[kind].make(folder / kind)
    counts: Counter[str] = Counter()

    def in_time() -> Iterator[tuple[str, Case]]:
        for case in cases:
            if time.monotonic() > until:
                return
            yield f"case {case.number}", case

    with progress_bar(total=len(cases), desc=kind, unit="case", leave=False) as bar:
        for case, verdict in guarded(partial(run, folder=folder), in_time(), workers, TIMEOUT):
            verdict = f"died: {verdict.reason}" if isinstance(verdict, Skipped) else verdict
            name = verdict.partition(":")[0]
            counts[name] += 1
            if name not in ALLOWED:
                bar.write(f"{kind} {case.number}: {verdict}\n  {case.command}", file=sys.stderr)
            bar.update()
    return counts


COMMAND = Command("recipes.research.fuzz", __doc__, FuzzKeys, fuzz_all)
main = COMMAND.main

if __name__ == "__main__":
    cli.exit(main)
