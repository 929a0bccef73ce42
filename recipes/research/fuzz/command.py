"""Damage real inputs at random, and see that everything works, is skipped with a reason or is refused with a reason.

python -m recipes.research.fuzz [--what media manifests ...] [--cases 1000] [--seed 0] [--seconds 600] [--workers 2]
python -m recipes.research.fuzz --what media --only 123 --seed 0      the same case again, in this process, with its traceback

Every case has a process of its own to die in, and bounded time. Another error, a death and a hang are failures: each is
printed with the command that repeats it, and the exit status is 1. Inputs are made here, in a temporary folder.
"""

import argparse
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from recipes.data.clips import Skipped
from recipes.data.workers import guarded
from recipes.progress import progress_bar
from recipes.research.fuzz.case import Case, run
from recipes.research.fuzz.kinds import KINDS

TIMEOUT = 60.0  # seconds for a case, on a busy machine
ALLOWED = ("works", "skipped", "refused")


def fuzz(kind: str, cases: range, seed: int, workers: int, folder: Path, until: float = float("inf")) -> Counter[str]:
    """Try cases of one kind.

    Args:
        kind: A name of `KINDS`.
        cases: Their numbers.
        seed: Of all randomness, together with the number.
        workers: Processes.
        folder: For the inputs.
        until: Time, by `time.monotonic`, after which no case is begun.

    Returns:
        How many cases had each verdict; failures are printed.
    """
    KINDS[kind].make(folder / kind)
    counts: Counter[str] = Counter()

    def items():
        for number in cases:
            if time.monotonic() > until:
                return
            yield f"case {number}", Case(kind, number, seed)

    with progress_bar(total=len(cases), desc=kind, unit="case", leave=False) as bar:
        for case, verdict in guarded(partial(run, folder=folder), items(), workers, TIMEOUT):
            verdict = f"died: {verdict.reason}" if isinstance(verdict, Skipped) else verdict
            name = verdict.partition(":")[0]
            counts[name] += 1
            if name not in ALLOWED:
                bar.write(f"{kind} {case.number}: {verdict}\n  {case.command}", file=sys.stderr)
            bar.update()
    return counts


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.research.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--what", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--cases", type=int, default=1000, help="of each kind")
    parser.add_argument("--only", type=int, help="the number of one case, which is tried in this process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=600.0, help="after which no case is begun, for each kind")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(arguments)
    failed = False
    with TemporaryDirectory(prefix="fuzz-") as scratch:
        for kind in options.what:
            if options.only is not None:
                KINDS[kind].make(Path(scratch, kind))
                print(f"{kind} {options.only}: {run(Case(kind, options.only, options.seed), Path(scratch), True)}")
                continue
            until = time.monotonic() + options.seconds
            counts = fuzz(kind, range(options.cases), options.seed, options.workers, Path(scratch), until)
            print(f"{kind}: {sum(counts.values())} cases; " + ", ".join(f"{n} {name}" for name, n in counts.items()))
            failed |= any(name not in ALLOWED for name in counts)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
